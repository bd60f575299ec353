"""collect_garbage: let go of what nobody needs any more, in the store, in a home folder and among the artifacts.

Files are chosen and moved aside inside one transaction of the store in which no job can be added or change its state, and
deleted after it: so no job that is queued or running finds something missing that was there when it began. Jobs, keys and
the like go by age. Profiles, plans, sweeps and their jobs stay until somebody deletes them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select, text
from sqlalchemy.orm import Session

from ..schema import ACTIVE
from .artifacts import Artifacts
from .leftovers import FINGERPRINT, Needed, leftovers, size
from .replies import KEPT_SECONDS
from .store import Store
from .tables import Base, JobRow, KeyRow, PlanRow, ProfileRow, ReplyRow, SessionRow, SweepRow, WorkerRow, timestamp

DAY_SECONDS = 86400.0
DEAD_WORKER_SECONDS = DAY_SECONDS  # a living one beats every few seconds; should it be forgotten, its next beat returns it


@dataclass
class Freed:
    count: int = 0
    bytes: int = 0


@dataclass
class GarbageReport:
    """What was freed, or would be, by kind. Rows of the database count no bytes: their room is used again by the next rows."""

    dry_run: bool
    freed: dict[str, Freed] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(freed.bytes for freed in self.freed.values())

    def add(self, kind: str, count: int = 1, bytes: int = 0) -> None:
        if count:
            freed = self.freed.setdefault(kind, Freed())
            freed.count += count
            freed.bytes += bytes

    def to_json(self) -> dict[str, Any]:
        kinds = {kind: vars(freed) for kind, freed in sorted(self.freed.items())}
        return {"dry_run": self.dry_run, "bytes": self.bytes, "freed": kinds}


def collect_garbage(
    store: Store,
    home: Path,
    artifacts: Artifacts | None = None,
    *,
    older_than_days: float = 30.0,
    dry_run: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> GarbageReport:
    """Delete what nobody needs: see `leftovers.py` for files; ended jobs, keys out of use and unfinished measurements once
    they are `older_than_days`. With `dry_run` only report what would go. Raises StoreUnavailable."""
    report = GarbageReport(dry_run)
    profiles = _profiles(store, home)
    with store.database.write() as session:
        if not store.database.is_sqlite:  # there the transaction alone keeps all others from writing
            session.execute(text("LOCK TABLE jobs, plans IN SHARE ROW EXCLUSIVE MODE"))
        _collect_rows(session, older_than_days * DAY_SECONDS, report)
        needed, idle = _needed(session, profiles), not _under_way(session)
        found = list(leftovers(home, needed, older_than_days * DAY_SECONDS, idle))
        aside = [(leftover, leftover.path if dry_run else _move_aside(leftover.path)) for leftover in found]
    for index, (leftover, path) in enumerate(aside):
        progress("delete", index, len(aside))
        report.add(leftover.kind, bytes=size(path))
        if not dry_run:
            _delete(path)
    if artifacts is not None:
        _collect_artifacts(artifacts, needed, older_than_days * DAY_SECONDS, idle, report)
    return report


def _profiles(store: Store, home: Path) -> dict[str, str]:
    """id -> render fingerprint, of every profile in the store or in the home."""
    with store.database.read() as session:
        documents = [json.loads(document) for document in session.scalars(select(ProfileRow.document))]
    for path in (home / "profiles").glob("[!.]*.json"):
        try:
            documents.append(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue
    return {str(document.get("id")): str(document.get("render_fingerprint")) for document in documents}


def _needed(session: Session, profiles: dict[str, str]) -> Needed:
    plans = set(session.scalars(select(PlanRow.id)))
    active = session.scalars(select(JobRow.input).where(JobRow.status.in_(ACTIVE)))
    asked = {str(json.loads(document).get("plan_id")) for document in active}
    made_of = set(session.scalars(select(PlanRow.render_fingerprint).distinct()))
    return Needed(plans | asked, set(profiles), made_of | set(profiles.values()))


def _under_way(session: Session) -> bool:
    return session.scalar(select(JobRow.number).where(JobRow.status.in_(ACTIVE)).limit(1)) is not None


def _collect_rows(session: Session, older_than_seconds: float, report: GarbageReport) -> None:
    old, now = timestamp(older_than_seconds), timestamp()
    swept = select(SweepRow.job_id)
    ended = (JobRow.status.not_in(ACTIVE), JobRow.finished_at < old, JobRow.id.not_in(swept))
    collected: dict[str, tuple[type[Base], list[ColumnElement[bool]]]] = {
        "ended jobs": (JobRow, list(ended)),
        "idempotency replies": (ReplyRow, [ReplyRow.created_at < timestamp(KEPT_SECONDS)]),
        "keys out of use": (KeyRow, [or_(KeyRow.revoked_at < old, KeyRow.expires_at < old)]),
        "sessions": (SessionRow, [SessionRow.expires_at < now]),
        "dead workers": (WorkerRow, [WorkerRow.seen_at < timestamp(DEAD_WORKER_SECONDS)]),
    }
    for kind, (table, which) in collected.items():
        count = session.scalar(select(func.count()).select_from(table).where(*which)) or 0
        report.add(kind, count)
        if not report.dry_run:
            session.execute(delete(table).where(*which))


def _collect_artifacts(
    artifacts: Artifacts, needed: Needed, older_than_seconds: float, idle: bool, report: GarbageReport
) -> None:
    """What other machines were given through a root other than the home."""
    renderings = {fingerprint[:FINGERPRINT] for fingerprint in needed.renderings}
    gone = []
    for name in artifacts.manifests():
        kind, _, rest = name.partition("/")
        identity = rest.partition("/")[0].partition(".")[0]
        old = idle and artifacts.age_seconds(name) > older_than_seconds
        useless = {
            "exports": identity not in needed.plans,
            "partial": identity in needed.profiles or old,
            "renderings": old and identity not in renderings,
        }
        if useless.get(kind, False):
            gone.append(name)
            report.add("artifacts")
            if not report.dry_run:
                artifacts.delete(name)
    for sha256, length in list(artifacts.unnamed_contents(without=gone)):
        report.add("contents", bytes=length)
        if not report.dry_run:
            artifacts.delete_content(sha256)


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f".{path.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return path
    return aside


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
