"""How a store of an earlier version, of a later one, and a database of something else are opened."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import postgres
from bitplan.allocator.errors import StoreUnavailable, UsageError
from bitplan.api.schema import InspectBody
from bitplan.api.store import Store, migrate
from bitplan.api.store.engine import make_engine
from bitplan.api.store.replies import Reply
from bitplan.api.store.tables import STORE_VERSION, Base

GOLDEN = Path(__file__).parent / "golden" / "store-v1.sql"  # the dump of a store that bitplan 0.1.0 wrote
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def old_rows() -> Rows:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(GOLDEN.read_text())
        connection.row_factory = sqlite3.Row
        names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name} ORDER BY 1")] for name in names}


@pytest.fixture
def old_store(database_url: str, old_rows: Rows) -> str:
    """The URL of a store at version 1 with the golden rows in it: on SQLite as bitplan 0.1.0 made it."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(GOLDEN.read_text())
        return database_url
    at_version_1(database_url, old_rows)
    return database_url


def at_version_1(url: str, rows: Rows) -> None:
    engine = make_engine(url)
    with engine.execution_options(writes=True).begin() as connection:
        migrate.upgrade(connection, 0, to="1")
        connection.execute(sa.text("DROP TABLE alembic_version"))  # bitplan 0.1.0 did not know it
        known = sa.MetaData()
        known.reflect(connection)
        connection.execute(known.tables["marks"].delete())
        for name, table in known.tables.items():
            connection.execute(table.insert(), rows[name])
            if "number" in table.c and connection.dialect.name == "postgresql":
                connection.execute(sa.text(f"SELECT setval('{name}_number_seq', (SELECT max(number) FROM {name}))"))
    engine.dispose()


def shape(url: str) -> dict[str, Any]:
    """Columns, keys, indexes and unique constraints of every table, whatever their order."""
    engine = make_engine(url)
    inspector = sa.inspect(engine)
    found = {}
    for table in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        columns = {(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)}
        indexes = {(i["name"], tuple(i["column_names"]), bool(i["unique"])) for i in inspector.get_indexes(table)}
        uniques = {tuple(u["column_names"]) for u in inspector.get_unique_constraints(table)}
        keys = tuple(inspector.get_pk_constraint(table)["constrained_columns"])
        found[table] = (columns, indexes, uniques, keys)
    engine.dispose()
    return found


def differences(url: str) -> list[Any]:
    engine = make_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        found = list(compare_metadata(context, Base.metadata))
        marks = [connection.execute(sa.text(query)).scalar() for query in VERSIONS]
    engine.dispose()
    assert marks == [str(STORE_VERSION)] * 2
    return found


VERSIONS = ("SELECT value FROM marks WHERE name = 'schema'", "SELECT version_num FROM alembic_version")


class TestStoresOfVersionOne:
    def test_nothing_of_them_is_lost(self, old_store: str, old_rows: Rows) -> None:
        with closing(Store.open(old_store)) as store:
            assert [item.id for item in store.plans(sort="created_at").items] == [row["id"] for row in old_rows["plans"]]
            for row, summary in zip(old_rows["plans"], store.plans(sort="created_at").items, strict=True):
                evidence = None if row["evidence"] is None else json.loads(row["evidence"])
                assert store.stored_plan(row["id"]).document == row["document"]
                assert store.plan(row["id"]).evidence == evidence
                measured = {
                    "verified": evidence and evidence["passed"],
                    "measured_loss": evidence and evidence["loss"]["measured"],
                }
                assert summary.model_dump() == {**json.loads(row["summary"]), **measured}
            assert {item.verified for item in store.plans().items} == {True, False, None}
            (profile,) = old_rows["profiles"]
            report, body = store.profile(profile["id"])
            assert report.to_json() == json.loads(profile["document"])
            assert json.loads(body.model_dump_json()) == json.loads(profile["request"])
            (inventory,) = old_rows["inventories"]
            found = store.inventory(inventory["fingerprint"])
            assert json.loads(json.dumps(found.to_json())) == json.loads(inventory["document"])
            for row in old_rows["jobs"]:
                job = store.jobs.get(row["id"])
                assert (job.kind, job.status, job.version, job.attempt) == tuple(
                    row[name] for name in ("kind", "status", "version", "attempt")
                )
                assert (job.owner, job.parent, job.input) == ("", None, json.loads(row["input"]))
                assert job.result == (None if row["result"] is None else json.loads(row["result"]))

    def test_their_plans_are_filtered_and_sorted_like_new_ones(self, old_store: str) -> None:
        with closing(Store.open(old_store)) as store:
            everything = store.plans().items
            one = everything[0]
            assert [item.id for item in store.plans(budget=one.budget, metric=one.metric).items] == [one.id]
            for sort in ("bytes", "loss", "stored_bits_per_weight"):
                values = [getattr(item, sort) for item in store.plans(sort=sort).items]
                assert values == sorted(getattr(item, sort) for item in everything)
            (model,) = store.models()
            assert (model.model, model.plans, model.profiles) == ("tiny", 3, 1)
            assert model.parameters == store.plan(one.id).model.parameters

    def test_a_reply_that_was_kept_is_replayed(self, old_store: str) -> None:
        with closing(Store.open(old_store)) as store, store.database.write() as session:
            session.execute(sa.text("UPDATE replies SET created_at = '9999-01-01T00:00:00.000Z'"))  # not a day old
        with closing(Store.open(old_store)) as store:
            reply = store.replies.answer_once("k-1", "plans", InspectBody(model="tiny"), lambda: Reply(500, "", {}))
            assert reply == Reply(201, '{"id": 1}', {"x": "y"})

    def test_new_rows_are_numbered_after_the_old_ones(self, old_store: str) -> None:
        with closing(Store.open(old_store)) as store:
            newest = store.jobs.submit("inspect", {"model": "new"})
            assert [job.id for job in store.jobs.list(limit=1).items] == [newest.id]
            twice = store.jobs.submit("plan", {"model": "c", "budget": "25%"})  # unfinished in the old store
            assert twice.id == store.jobs.list(kind="plan").items[0].id
            assert len(store.jobs.list(kind="plan").items) == 1

    def test_two_unfinished_jobs_of_one_content_both_stay(self, old_store: str, old_rows: Rows) -> None:
        """PostgreSQL could let two in at once; the index that forbids it now must not stop the migration."""
        doubled = {**old_rows["jobs"][-1], "number": 99, "id": "job_doubled"}
        engine = make_engine(old_store)
        table = sa.table("jobs", *(sa.column(name) for name in doubled))
        with engine.execution_options(writes=True).begin() as connection:
            connection.execute(table.insert(), doubled)
        engine.dispose()
        with closing(Store.open(old_store)) as store:
            assert store.jobs.get("job_doubled").input == store.jobs.get(old_rows["jobs"][-1]["id"]).input

    def test_a_migration_that_dies_half_way_leaves_version_one(
        self, old_store: str, old_rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = shape(old_store)
        execute = sa.Connection.execute

        def die(self: sa.Connection, statement: Any, *args: Any, **kwargs: Any) -> Any:
            if "SET value = '2'" in str(statement):  # the last thing that it does
                raise KeyboardInterrupt
            return execute(self, statement, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(sa.Connection, "execute", die)
            with pytest.raises(KeyboardInterrupt):
                Store.open(old_store)
        assert shape(old_store) == before
        with closing(Store.open(old_store)) as store:
            assert len(store.plans().items) == len(old_rows["plans"])


class TestRevisions:
    def test_they_make_the_tables_that_the_code_knows(self, database_url: str) -> None:
        Store.open(database_url).close()
        assert differences(database_url) == []

    def test_from_version_one_they_make_the_same(self, old_store: str, tmp_path: Path) -> None:
        Store.open(old_store).close()
        assert differences(old_store) == []
        if old_store.startswith("sqlite"):
            fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
            Store.open(fresh).close()
            assert shape(old_store) == shape(fresh)

    def test_the_first_is_the_store_of_0_1_0(self, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "golden.db")) as connection:
            connection.executescript(GOLDEN.read_text())
        engine = make_engine(f"sqlite:///{tmp_path / 'first.db'}")
        with engine.execution_options(writes=True).begin() as connection:
            migrate.upgrade(connection, 0, to="1")
        engine.dispose()
        assert shape(f"sqlite:///{tmp_path / 'first.db'}") == shape(f"sqlite:///{tmp_path / 'golden.db'}")

    def test_any_number_of_first_openers_may_race(self, old_store: str) -> None:
        barrier, failures = threading.Barrier(6), []

        def open_at_once() -> None:
            barrier.wait(10)
            try:
                Store.open(old_store).close()
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=open_at_once) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert differences(old_store) == []


class TestDatabasesThatAreNoStore:
    def test_a_newer_store_is_named_with_the_remedy(self, database_url: str) -> None:
        with closing(Store.open(database_url)) as store, store.database.write() as session:
            session.execute(sa.text("UPDATE marks SET value = '99' WHERE name = 'schema'"))
        with pytest.raises(UsageError, match=r"newer bitplan \(schema 99.*upgrade"):
            Store.open(database_url)

    def test_tables_of_something_else_are_left_alone(self, database_url: str) -> None:
        engine = make_engine(database_url)
        with engine.execution_options(writes=True).begin() as connection:
            connection.execute(sa.text("CREATE TABLE jobs (title VARCHAR)"))
        engine.dispose()
        with pytest.raises(UsageError, match="something else"):
            Store.open(database_url)
        assert list(shape(database_url)) == ["jobs"]

    @pytest.mark.parametrize("content", [b"# Notes\n" * 200, b"SQLite format 3\0" + b"\xff" * 4096])
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "notes.md"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"notes\.md is no store of bitplan .*name another file"):
            Store.open(f"sqlite:///{path}")
        assert path.read_bytes() == content

    def test_a_folder_in_the_files_place(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="cannot be used now"):
            Store.open(f"sqlite:///{tmp_path}")

    @pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/name", "sqlite://", "sqlite:///:memory:", "bitplan.db", "//"])
    def test_urls_of_no_database(self, url: str) -> None:
        with pytest.raises(UsageError, match="write sqlite:///FILE or postgresql"):
            Store.open(url)

    def test_a_server_that_is_not_there_and_the_password_stays_secret(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable) as raised:
            Store.open(f"postgresql://me:hush@/name?host={tmp_path}")
        assert "hush" not in str(raised.value)
        assert "\n" not in str(raised.value)

    def test_a_database_that_is_not_there(self) -> None:
        before, _, query = postgres.server_uri().partition("?")
        with pytest.raises((StoreUnavailable, UsageError), match="nowhere"):
            Store.open(f"{before.rpartition('/')[0]}/nowhere?{query}")


def test_opening_a_store_that_is_up_to_date_loads_no_alembic(tmp_path: Path) -> None:
    """It is opened by every command; what is slow to import is for the first one."""
    import subprocess
    import sys

    url = f"sqlite:///{tmp_path / 'bitplan.db'}"
    Store.open(url).close()
    code = "import sys; from bitplan.api.store import Store; Store.open(sys.argv[1]).close(); assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, url], check=True, timeout=60)
