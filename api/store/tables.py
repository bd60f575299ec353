"""The tables of the store, as the code sees them now; `migrations/` holds how they came to be.

    plans           one narrow row a plan: what lists show, filter and sort by
    plan_documents  the plan itself, immutable, and its evidence, replaced by newer evidence
    profiles        sensitivity reports with the request that measured them
    inventories     what was found in a model, by fingerprint
    jobs            one row a job, as users see it
    sweeps, sweep_cells   what was asked for in one go, and what became of each plan of it
    keys            API keys, by the hash of their secret
    sessions        browsers that were let in for a key, by the hash of their cookie
    workers         processes that do jobs, and their last sign of life
    replies         first replies to requests that carried an Idempotency-Key
    marks           named strings: the schema's version

Documents are kept as the JSON text that was put in. Rows are numbered as they come, so that number order is time order
and a number is a place to go on from.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Dialect, Double, Index, String, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ...allocator.errors import UsageError

STORE_VERSION = 3


class Words(TypeDecorator[str]):
    """Text that every database can hold. PostgreSQL has no NUL and no encoding knows half of a surrogate pair, so both are
    refused here, on the way in, wherever they come from."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if isinstance(value, str):
            check_words(value)
        return value


def check_words(value: str) -> None:
    """Raise UsageError for text that cannot be stored."""
    if "\0" in value:
        raise UsageError(f"{value[:40]!r} holds a NUL character, which cannot be stored; leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{value[:40]!r} holds half of a surrogate pair, which is no text; send valid Unicode") from None


class Base(DeclarativeBase):
    type_annotation_map = {str: Words(), float: Double()}  # noqa: RUF012  (what SQLAlchemy asks for)


class Numbered(Base):
    __abstract__ = True
    number: Mapped[int] = mapped_column(primary_key=True)


class PlanRow(Numbered):
    __tablename__ = "plans"
    __table_args__ = tuple(Index(f"ix_plans_model_{name}", "model", name) for name in ("bytes", "loss", "stored_bits_per_weight"))
    id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    target: Mapped[str]
    metric: Mapped[str]
    budget: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger, index=True)
    loss: Mapped[float] = mapped_column(index=True)
    stored_bits_per_weight: Mapped[float] = mapped_column(index=True)
    verified: Mapped[bool | None]  # None: never measured; else whether the evidence says that it passed
    measured_loss: Mapped[float | None]
    render_fingerprint: Mapped[str]  # of the renderings that it is executed from; empty: of any
    created_at: Mapped[str]
    summary: Mapped[str]


class PlanDocumentRow(Base):
    __tablename__ = "plan_documents"
    id: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[str]
    evidence: Mapped[str | None]


class ProfileRow(Numbered):
    __tablename__ = "profiles"
    id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[str]
    request: Mapped[str]
    summary: Mapped[str]
    document: Mapped[str]


class InventoryRow(Numbered):
    __tablename__ = "inventories"
    fingerprint: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[str]
    summary: Mapped[str]  # architecture, units, parameters: what a list shows
    document: Mapped[str]


UNDER_WAY = text("status IN ('queued', 'running')")


class JobRow(Numbered):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    content: Mapped[str]  # hash of kind and input: two requests for the same work are one job
    status: Mapped[str]
    owner: Mapped[str] = mapped_column(index=True)
    parent: Mapped[str | None] = mapped_column(index=True)
    input: Mapped[str]
    progress: Mapped[str | None]
    result: Mapped[str | None]
    error: Mapped[str | None]
    attempt: Mapped[int]
    version: Mapped[int]  # grows by one with every write; the id of an event
    created_at: Mapped[str]
    started_at: Mapped[str | None]
    finished_at: Mapped[str | None]
    __table_args__ = (
        Index("ix_jobs_status_kind", "status", "kind"),
        Index("ix_jobs_under_way", "content", unique=True, sqlite_where=UNDER_WAY, postgresql_where=UNDER_WAY),
    )


class SweepRow(Numbered):
    __tablename__ = "sweeps"
    id: Mapped[str] = mapped_column(unique=True)
    job_id: Mapped[str] = mapped_column(unique=True)
    owner: Mapped[str]
    created_at: Mapped[str]
    request: Mapped[str]
    content: Mapped[str] = mapped_column(index=True)  # hash of the request


class CellRow(Base):
    __tablename__ = "sweep_cells"
    sweep_id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    metric: Mapped[str]
    target: Mapped[str]
    budget: Mapped[str]
    status: Mapped[str]
    plan_id: Mapped[str | None]
    error: Mapped[str | None]


class KeyRow(Numbered):
    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    scope: Mapped[str]
    prefix: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)  # SHA-256 of the secret, which is kept nowhere
    created_at: Mapped[str]
    expires_at: Mapped[str | None]
    last_used_at: Mapped[str | None]
    revoked_at: Mapped[str | None]


class SessionRow(Base):
    __tablename__ = "sessions"
    hash: Mapped[str] = mapped_column(primary_key=True)  # SHA-256 of the token in the browser's cookie
    key_id: Mapped[str] = mapped_column(index=True)
    expires_at: Mapped[str] = mapped_column(index=True)


class WorkerRow(Base):
    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    process_started: Mapped[float]
    version: Mapped[str]
    beat: Mapped[int] = mapped_column(BigInteger)
    job_id: Mapped[str | None]
    seen_at: Mapped[str]


class ReplyRow(Base):
    __tablename__ = "replies"
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(primary_key=True)  # keys of two users are two keys
    content: Mapped[str]
    status: Mapped[int | None]  # None while the first request is being answered
    headers: Mapped[str | None]
    body: Mapped[str | None]
    created_at: Mapped[str] = mapped_column(index=True)


class MarkRow(Base):
    __tablename__ = "marks"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


def timestamp(seconds_ago: float = 0.0) -> str:
    """The time as RFC 3339 in UTC; such strings sort as the times do."""
    moment = datetime.fromtimestamp(time.time() - seconds_ago, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
