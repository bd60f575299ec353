"""Database: a store's engine, its transactions, and what becomes of its errors.

SQLite runs in WAL mode, and a transaction that will write says so at its start (BEGIN IMMEDIATE): it waits its turn
instead of failing half-way, whatever the number of processes. PostgreSQL is spoken to through psycopg, reads outside of
transactions, and rows that a step depends on are locked by that step.

A database that cannot be reached raises StoreUnavailable. Whoever opened it with patience tries again, with pauses that
double, until the patience is spent: see `patient`. A full disk raises DiskFull and is not waited for.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Insert, Table, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ...allocator.errors import StoreUnavailable, UsageError
from .engine import BUSY_SECONDS, make_engine, shown, understood
from .migrate import bring_up_to_date, version
from .tables import STORE_VERSION, Base

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0


class Database:
    """An open database, brought up to the newest schema. Safe to share between threads; open one in each process.

    `patience_seconds` is how long one call goes on trying while the database is away."""

    def __init__(self, url: str, patience_seconds: float = 0.0) -> None:
        self.url = url
        self.patience_seconds = patience_seconds
        self._engine = make_engine(url)
        self._writer = threading.RLock()
        self._reading = self._engine
        if not self.is_sqlite:
            self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writing = self._engine.execution_options(writes=True)
        self._writing_fast = self._engine.execution_options(writes=True, durable=False)
        try:
            self.patiently(self._open)
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        with self._errors_understood(), Session(self._reading) as session:
            yield session

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[Session]:
        """One transaction: kept when the block ends, undone when it raises. A kill loses nothing that was kept. Where it is
        not `durable`, a power cut may, which costs much less: for what the same request makes again."""
        engine = self._writing if durable else self._writing_fast
        with self._turn(), self._errors_understood(), Session(engine, expire_on_commit=False) as session, session.begin():
            session.connection()  # takes the lock now; sessions begin at their first statement otherwise
            if not durable and not self.is_sqlite:
                session.execute(text("SET LOCAL synchronous_commit = off"))
            yield session

    def patiently(self, work: Callable[[], Result]) -> Result:
        """`work()`, again and again while the database is away, until the patience is spent."""
        deadline = time.monotonic() + self.patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return work()
            except StoreUnavailable:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # so that many workers do not all come at once
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def check_schema(self) -> None:
        """Raises UsageError when another bitplan has changed the schema since this one opened the store."""
        with self._errors_understood(), self._reading.connect() as connection:
            found = version(connection)
        if found != STORE_VERSION:
            raise UsageError(f"the store is at schema {found} and this bitplan at {STORE_VERSION}; restart the service")

    def close(self) -> None:
        self._engine.dispose()

    def _open(self) -> None:
        with self._errors_understood():
            bring_up_to_date(self._writing)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """SQLite has one writer at a time. The threads of this process queue for it here, since SQLite's own waiting is to
        look again after ever longer sleeps."""
        if not self.is_sqlite:
            yield
        elif self._writer.acquire(timeout=BUSY_SECONDS):
            try:
                yield
            finally:
                self._writer.release()
        else:
            raise StoreUnavailable(f"the store {shown(self.url)} was busy for {BUSY_SECONDS:g} s; try again in a moment")

    @contextmanager
    def _errors_understood(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            meant = understood(error, shown(self.url))
            if meant is None:
                raise
            raise meant from error


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class _HasDatabase(Protocol):
    @property
    def database(self) -> Database: ...


Owner = TypeVar("Owner", bound=_HasDatabase)


def patient(method: Callable[Concatenate[Owner, Arguments], Result]) -> Callable[Concatenate[Owner, Arguments], Result]:
    """A method whose whole work is done again when the database was away. Such work must be the same when done twice."""

    def tried(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return self.database.patiently(lambda: method(self, *args, **kwargs))

    functools.update_wrapper(tried, method)
    return tried


def insert_new(session: Session, table: type[Base], **values: Any) -> bool:
    """Insert a row unless its key is taken; true when it was inserted. No two callers are told so."""
    statement = _insert(session.get_bind().dialect.name, table)
    return bool(session.connection().execute(statement, values, execution_options={"preserve_rowcount": True}).rowcount)


@functools.cache
def _insert(dialect: str, table: type[Base]) -> Insert:
    """The statement without its values: built for each row anew, it would take longer than the row."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    rows: Table = table.__table__  # type: ignore[assignment]
    return insert(rows).on_conflict_do_nothing()
