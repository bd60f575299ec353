"""What is particular to the SQLite store; what every store promises is in `contracts/test_store_contract.py`."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import fakes
from bitplan.allocator.errors import UsageError
from bitplan.api.store import Store
from bitplan.api.store.tables import STORE_VERSION, MarkRow, timestamp


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet" / "bitplan.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(f"sqlite:///{path}")) as store:
        yield store


def test_the_file_is_made_with_its_folder_and_runs_in_wal_mode(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT value FROM marks WHERE name = 'schema'").fetchone() == (str(STORE_VERSION),)


def test_a_store_of_a_newer_version_is_refused(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE marks SET value = '99' WHERE name = 'schema'")
        connection.commit()
    with pytest.raises(UsageError, match=r"newer bitplan \(schema 99"):
        Store.open(f"sqlite:///{path}")


def test_a_writer_waits_for_another_instead_of_failing(store: Store) -> None:
    plan = fakes.plan()
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(5)
        store.put_plan(plan)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with store.database.write():
        inside.set()
        assert not done.wait(0.3)
    thread.join(5)
    assert done.is_set()


def test_readers_are_not_held_up_by_a_writer(store: Store) -> None:
    store.put_plan(fakes.plan())
    with store.database.write():
        assert len(store.plans().items) == 1


def test_what_fails_half_way_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(store)
    with store.database.read() as session:
        assert session.get(MarkRow, "half") is None


def _write_and_fail(store: Store) -> None:
    with store.database.write() as session:
        session.add(MarkRow(name="half", value="1"))
        session.flush()
        _ = 1 / 0


def test_times_sort_as_text() -> None:
    moments = [timestamp(seconds_ago=seconds) for seconds in (86400.0 * 400, 3600.0, 61.0, 0.5, 0.0)]
    assert moments == sorted(moments)
    assert all(moment.endswith("Z") and len(moment) == 24 for moment in moments)
