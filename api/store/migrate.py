"""Bring a store up to the schema that this code knows, whoever opens it first.

One process at a time does it, in one transaction: on SQLite that transaction is the lock, on PostgreSQL an advisory lock
goes with it. So of two first openers one migrates, and the other waits and finds it done; a process killed in the middle
leaves the store as it was. The version is the mark `schema`, which every version of bitplan reads, and Alembic's own table
says the same.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from ...allocator.errors import UsageError
from .tables import STORE_VERSION, Base

LOCK = 0x6269_7470_6C61_6E  # "bitplan"
_one_at_a_time = threading.Lock()  # Alembic keeps what it is doing in a module


def bring_up_to_date(engine: Engine) -> None:
    """Raises UsageError for a store of a newer bitplan and for a database of something else."""
    with engine.connect() as connection:
        if version(connection) == STORE_VERSION:
            return
    with _one_at_a_time, engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        found = version(connection)
        if found < STORE_VERSION:
            upgrade(connection, found)


def version(connection: Connection) -> int:
    """The schema that the store is at; 0 for an empty database."""
    url = connection.engine.url.render_as_string(hide_password=True)
    tables = set(inspect(connection).get_table_names())
    foreign = UsageError(f"{url} holds tables of something else; choose another database or another BITPLAN_HOME")
    if "marks" not in tables:
        if tables & set(Base.metadata.tables):
            raise foreign
        return 0
    found = connection.execute(text("SELECT value FROM marks WHERE name = 'schema'")).scalar()
    if found is None or not str(found).isdecimal():
        raise foreign
    if int(found) > STORE_VERSION:
        raise UsageError(
            f"the store {url} was written by a newer bitplan (schema {found}, this one knows {STORE_VERSION}); upgrade "
            "bitplan or choose another BITPLAN_HOME"
        )
    return int(found)


def upgrade(connection: Connection, found: int, to: str = "head") -> None:
    """Run the revisions after `found` in the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    if found == 1 and not inspect(connection).has_table("alembic_version"):
        command.stamp(config, "1")  # bitplan 0.1.0 made its store without Alembic
    command.upgrade(config, to)
