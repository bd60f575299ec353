"""The tables, and the one way to open them.

    plans        immutable documents; `evidence` beside them is replaced by newer evidence
    profiles     sensitivity reports with the request that measured them
    inventories  what was found in a model, by fingerprint
    jobs         one row a job; the row is the job's whole state
    replies      first replies to requests that carried an Idempotency-Key
    marks        named strings: the schema's version, the worker's heartbeat

Documents are kept as the JSON text that was put in. Rows are numbered as they come, so that number order is time order
and a number is a cursor. SQLite runs in WAL mode, and a transaction that will write says so at its start (BEGIN
IMMEDIATE): it waits its turn instead of failing half-way, whatever the number of processes.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Select, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from ...allocator.errors import UsageError

STORE_VERSION = 1
BUSY_SECONDS = 30.0


class Base(DeclarativeBase):
    pass


class PlanRow(Base):
    __tablename__ = "plans"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    target: Mapped[str]
    created_at: Mapped[str]
    summary: Mapped[str]
    document: Mapped[str]
    evidence: Mapped[str | None]


class ProfileRow(Base):
    __tablename__ = "profiles"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[str]
    request: Mapped[str]
    summary: Mapped[str]
    document: Mapped[str]


class InventoryRow(Base):
    __tablename__ = "inventories"
    number: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[str]
    document: Mapped[str]


class JobRow(Base):
    __tablename__ = "jobs"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    content: Mapped[str] = mapped_column(index=True)  # hash of kind and input: two requests for the same work are one job
    status: Mapped[str] = mapped_column(index=True)
    input: Mapped[str]
    progress: Mapped[str | None]
    result: Mapped[str | None]
    error: Mapped[str | None]
    attempt: Mapped[int]
    version: Mapped[int]  # grows by one with every write; the id of an event
    created_at: Mapped[str]
    started_at: Mapped[str | None]
    finished_at: Mapped[str | None]


class ReplyRow(Base):
    __tablename__ = "replies"
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[str]
    status: Mapped[int | None]  # None while the first request is being answered
    headers: Mapped[str | None]
    body: Mapped[str | None]
    created_at: Mapped[str]


class MarkRow(Base):
    __tablename__ = "marks"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


Row = TypeVar("Row", PlanRow, ProfileRow, JobRow)


class Database:
    """An open database. Safe to share between threads; open one in each process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _engine(url)
        self._writing = self._engine.execution_options(writes=True)
        _create(self)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: kept when the block ends, undone when it raises."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            session.connection()  # takes the lock now; sessions begin at their first statement otherwise
            yield session

    def close(self) -> None:
        self._engine.dispose()


def timestamp(seconds_ago: float = 0.0) -> str:
    """The time as RFC 3339 in UTC; such strings sort as the times do."""
    moment = datetime.fromtimestamp(time.time() - seconds_ago, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def page(session: Session, table: type[Row], query: Select[Row], cursor: str | None, limit: int) -> tuple[list[Row], str | None]:
    """The newest `limit` rows of `query` before the cursor, and the cursor of what follows them (None: nothing does)."""
    if cursor is not None:
        try:
            query = query.where(table.number < int(base64.urlsafe_b64decode(cursor.encode())))
        except (ValueError, binascii.Error):
            raise UsageError(f"the cursor {cursor!r} is none of ours; take `next_cursor` of the page before") from None
    rows = list(session.scalars(query.order_by(table.number.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], base64.urlsafe_b64encode(str(rows[limit - 1].number).encode()).decode()


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url)
    path = url.partition("sqlite:///")[2]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def own_transactions(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # otherwise the driver begins transactions of its own, and too late

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _create(database: Database) -> None:
    _use_wal(database)
    with database.write() as session:
        Base.metadata.create_all(session.connection())
        found = session.get(MarkRow, "schema")
        if found is None:
            session.add(MarkRow(name="schema", value=str(STORE_VERSION)))
        elif int(found.value) > STORE_VERSION:
            raise UsageError(
                f"the store {database.url} was written by a newer bitplan (schema {found.value}, this one knows "
                f"{STORE_VERSION}); upgrade bitplan or choose another BITPLAN_HOME"
            )


def _use_wal(database: Database) -> None:
    """The mode is a property of the file. Changing it ignores the busy timeout, so two first openers may collide."""
    if not database.url.startswith("sqlite"):
        return
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        connection = database._engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise OperationalError("PRAGMA journal_mode=WAL", None, error) from error
            time.sleep(0.05)
        finally:
            connection.close()
