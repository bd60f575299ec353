"""A database that is away, full, or killed in the middle: what callers are told, and what is kept."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

import fakes
import postgres
from bitplan.allocator.errors import DiskFull, StoreUnavailable
from bitplan.api.store import Store
from bitplan.api.store.database import Database

FULL_DISK = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'could not extend file'; END $$
"""


@pytest.fixture
def line() -> Iterator[postgres.Line]:
    with postgres.fresh_database(postgres.store_template()) as url, postgres.Line(url) as line:
        yield line


class TestPostgresqlAway:
    def test_without_patience_it_is_said_at_once_and_over_when_it_is_back(self, line: postgres.Line) -> None:
        with closing(Store.open(line.url)) as store:
            store.put_plan(fakes.plan("25%"))
            line.cut()
            for ask in (store.plans, store.jobs.list, lambda: store.jobs.submit("inspect", {}), store.models):
                with pytest.raises(StoreUnavailable, match="try again once it is back"):
                    ask()
            line.mend()
            assert len(store.plans().items) == 1

    def test_with_patience_calls_wait_and_do_their_work_once(self, line: postgres.Line) -> None:
        with closing(Store.open(line.url, patience_seconds=60)) as store:
            line.cut()
            found: list[object] = []
            calls = [
                lambda: store.put_plan(fakes.plan("25%")),
                lambda: store.jobs.submit("inspect", {"model": "m"}).status,
                lambda: store.plans(limit=1).next_cursor,
            ]
            threads = [threading.Thread(target=lambda call=call: found.append(call())) for call in calls]
            for thread in threads:
                thread.start()
            threads[0].join(0.3)
            assert found == []
            line.mend()
            for thread in threads:
                thread.join(30)
            assert sorted(map(str, found)) == ["None", "True", "queued"]
            assert len(store.plans().items) == len(store.jobs.list().items) == 1

    def test_a_connection_lost_inside_a_transaction_undoes_it_and_the_work_is_done_again(self, line: postgres.Line) -> None:
        with closing(Store.open(line.url, patience_seconds=60)) as store:
            tries = []

            def work() -> str:
                tries.append(1)
                with store.database.write() as session:
                    session.execute(sa.text("INSERT INTO marks (name, value) VALUES ('half', '1')"))
                    if len(tries) == 1:
                        line.cut()
                        line.mend()
                    session.execute(sa.text("UPDATE marks SET value = value || '2' WHERE name = 'half'"))
                with store.database.read() as session:
                    return str(session.scalar(sa.text("SELECT value FROM marks WHERE name = 'half'")))

            assert store.database.patiently(work) == "12"
            assert len(tries) == 2

    def test_patience_ends(self, line: postgres.Line) -> None:
        with closing(Database(line.url, patience_seconds=0.4)) as database:
            tries = []

            def work() -> None:
                tries.append(1)
                raise StoreUnavailable("away")

            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                database.patiently(work)
            assert len(tries) >= 2
            assert time.monotonic() - began >= 0.4

    def test_a_patient_opener_waits_for_the_server(self, line: postgres.Line) -> None:
        line.cut()
        with pytest.raises(StoreUnavailable):
            Store.open(line.url)
        threading.Timer(0.3, line.mend).start()
        Store.open(line.url, patience_seconds=60).close()

    def test_its_full_disk_is_no_reason_to_wait(self, line: postgres.Line) -> None:
        with closing(Store.open(line.url, patience_seconds=60)) as store:
            with store.database.write() as session:
                session.execute(sa.text(FULL_DISK))
                session.execute(sa.text("CREATE TRIGGER full_disk BEFORE INSERT ON plans EXECUTE FUNCTION full_disk()"))
            with pytest.raises(DiskFull, match="free some space"):
                store.put_plan(fakes.plan())


class TestFullDisk:
    def test_nothing_half_is_left_and_it_goes_on_with_more_room(self, tmp_path: Path) -> None:
        with closing(Store.open(f"sqlite:///{tmp_path / 'bitplan.db'}")) as store:
            store.put_plan(fakes.plan("25%"))
            limit = "PRAGMA max_page_count = "
            connections = [store.database._engine.raw_connection() for _ in range(2)]  # a pool hands out the same ones again
            for connection in connections:
                pages = connection.cursor().execute("PRAGMA page_count").fetchone()[0]
                connection.cursor().execute(f"{limit}{pages}")
                connection.close()
            plan = fakes.plan("30%").model_copy(update={"notes": ["x" * 100_000]})
            with pytest.raises(DiskFull, match=r"the disk of the store sqlite:.* is full; free some space"):
                store.put_plan(plan)
            assert len(store.plans().items) == 1
            for connection in [store.database._engine.raw_connection() for _ in range(2)]:
                connection.cursor().execute(f"{limit}1000000")
                connection.close()
            assert store.put_plan(plan)

    def test_a_store_that_may_not_be_written(self, tmp_path: Path) -> None:
        path = tmp_path / "bitplan.db"
        with closing(Store.open(f"sqlite:///{path}")) as store:
            _, secret = store.keys.create("ann", "read")
            for connection in [store.database._engine.raw_connection() for _ in range(2)]:
                connection.cursor().execute("PRAGMA query_only = on")
                connection.close()
            with pytest.raises(StoreUnavailable, match="readonly"):
                store.put_plan(fakes.plan())
            assert store.plans().items == []
            assert store.keys.check(secret) is not None  # though its use cannot be written down


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
import fakes
from bitplan.api.store import Store

store = Store.open(sys.argv[1])
plan = fakes.plan().model_copy(update={"notes": ["x" * 200_000]})
number = 0
while True:
    number += 1
    plan_id = f"{number:064x}"
    store.put_plan(plan.model_copy(update={"id": plan_id}))
    job = store.jobs.submit("plan", {"number": number})
    store.jobs.begin(job.id)
    store.jobs.finish(job.id, {"plan_id": plan_id})
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_was_told_is_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bitplan.db'}"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    told = 0
    with process, closing(Store.open(url)) as store:
        for text in process.stdout:
            told = int(text)
            if told == 12:
                time.sleep(0.0007 * (os.getpid() % 10))  # anywhere in the next round
                process.send_signal(signal.SIGKILL)
        plans = {item.id for item in store.plans(limit=200).items}
        assert {f"{number:064x}" for number in range(1, told + 1)} <= plans
        assert len(plans) <= told + 1
        for plan_id in plans:
            assert len(store.plan(plan_id).notes[0]) == 200_000
        for job in store.jobs.list(limit=200).items:
            assert job.status != "succeeded" or (job.result is not None and job.result["plan_id"] in plans)
        store.put_plan(fakes.plan())
    with closing(sqlite3.connect(tmp_path / "bitplan.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
