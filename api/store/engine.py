"""The engine of a database URL, and its errors as errors of the tree.

sqlite:///path/bitplan.db                      a file; its folder is made
postgresql://user:password@host/name           through psycopg 3
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ...allocator.errors import BitplanError, DiskFull, StoreUnavailable, UsageError

BUSY_SECONDS = 30.0
CONNECT_SECONDS = 5
POOL_SECONDS = 10.0
STATEMENT_SECONDS = 60
CHECKPOINT_PAGES = 4000  # 16 MB: pages that change again and again are written back once
CACHE_KIB = 8192  # a connection; holds the narrow rows of 10,000 plans
POOL_SIZE, POOL_OVERFLOW = 8, 24
# Beginnings of SQLSTATEs, and of SQLite's names of errors.
FULL = ("53100", "SQLITE_FULL")
RUINED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_FORMAT")
AWAY = (
    *("08", "57P", "53", "25006", "40001", "40P01", "55P03", "57014"),
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM"),
)


def make_engine(url: str) -> Engine:
    """Raises UsageError for a URL of no database that a store can live in."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise _no_database(url) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return _sqlite(parsed)
    if backend in ("postgresql", "postgres"):
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise _no_database(shown(url))


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def understood(error: SQLAlchemyError, url: str) -> BitplanError | None:
    """What an error of the database means to a user; None for one that should not happen."""
    cause = error.orig if isinstance(error, StatementError) else None
    if isinstance(cause, BitplanError):
        return cause
    if isinstance(error, PoolTimeout):
        return StoreUnavailable(f"the store {url} has no connection free for {POOL_SECONDS:g} s; try again in a moment")
    if not isinstance(error, DBAPIError):
        return None
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    code = str(getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None) or "")
    if code in FULL:
        return DiskFull(f"the disk of the store {url} is full; free some space and try again")
    if code.startswith(RUINED):
        return UsageError(f"{url} is no store of bitplan ({reason}); name another file or restore this one from a copy")
    # A connection that failed or broke off has no code on PostgreSQL.
    if error.connection_invalidated or code.startswith(AWAY) or (isinstance(error, OperationalError) and not code):
        return StoreUnavailable(f"the store {url} cannot be used now ({reason}); try again once it is back")
    return None


def _no_database(url: str) -> UsageError:
    return UsageError(f"{url!r} names no database for a store; write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")


def _postgresql(url: URL) -> Engine:
    options = url.query.get("options", "")
    given = options if isinstance(options, str) else " ".join(options)
    return create_engine(
        url,
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=POOL_SECONDS,
        pool_recycle=1800,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "bitplan",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "options": f"{given} -c statement_timeout={STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout=60s".strip(),
        },
    )


def _sqlite(url: URL) -> Engine:
    assert url.database is not None
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the folder of {shown(str(url))} cannot be made ({error.strerror}); name another") from error
    engine = create_engine(
        url, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # otherwise the driver begins transactions of its own, and too late
        _use_wal(connection)
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("writes", False):
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('durable', True) else 'NORMAL'}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _use_wal(connection: Any) -> None:
    """The mode is a property of the file. Changing it ignores the busy timeout, so two first openers may collide."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
