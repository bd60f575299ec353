"""Jobs: rows, progress, who is alive, and what workers with made-up networks do with each kind of job on the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fakes
import postgres
from bitplan.allocator import ProfileRequest
from bitplan.allocator.errors import Interrupted, NotFound
from bitplan.api.jobs.engine import Engine, engine_url
from bitplan.api.jobs.presence import DEAD_SECONDS, Presence, Watch, host_name, process_lives
from bitplan.api.jobs.progress import JobProgress
from bitplan.api.jobs.queue import Jobs
from bitplan.api.jobs.supervisor import Supervisor
from bitplan.api.jobs.watching import Glances
from bitplan.api.schema import JobView, Progress, WorkerView
from bitplan.api.settings import Settings
from bitplan.api.store import Store

PLAN = {"model": "tiny", "budget": "25%"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(tmp_path / "home")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with closing(Store.open(settings.database_url)) as store:
        yield store


@pytest.fixture
def jobs(store: Store, settings: Settings) -> Iterator[Jobs]:
    with closing(Engine(settings.database_url)) as engine:
        yield Jobs(store, engine)


def until(jobs: Jobs, job: JobView, holds: Callable[[JobView], bool], within_seconds: float = 240.0) -> JobView:
    deadline = time.monotonic() + within_seconds
    while not holds(now := jobs.get(job.id)):
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    return now


def ended(jobs: Jobs, job: JobView) -> JobView:
    """The job once it has ended; fails when it does not."""
    return until(jobs, job, lambda now: now.finished)


WORKER = """
import os, sys, time
sys.path.insert(0, {tests!r})
import fakes
fakes.install()
import bitplan.api.jobs.parents as parents, bitplan.api.jobs.worker as worker
parents.POLL_SECONDS = parents.LONGEST_POLL_SECONDS = 0.05
worker.BEAT_SECONDS, worker.POLL_SECONDS, worker.PIECE_POLL_SECONDS = 0.2, 0.05, 0.05
{before}
worker.main()
"""
SLOW = "fakes._tell = lambda progress, stage, total: [(progress(stage, done, 40), time.sleep(0.02)) for done in range(41)]"
# Whoever inspects `poison` dies of it; `stubborn` never looks up; `slow` ones take three seconds.
KILLER = """
inspect = fakes.inspect_model
def deadly(model, **more):
    if model == "poison": os.kill(os.getpid(), 9)
    if model == "stubborn": time.sleep(600)
    if model.startswith("slow"):
        for done in range(100): more["progress"]("load", done, 100); time.sleep(0.03)
    return inspect(model, **more)
import bitplan.allocator
bitplan.allocator.inspect_model = deadly
import bitplan.api.jobs.recovery
bitplan.api.jobs.recovery.GRACE_SECONDS = 0.5
"""


def worker_command(before: str = "") -> list[str]:
    return [sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent), before=before)]


class TestProgress:
    @pytest.fixture
    def job(self, store: Store) -> JobView:
        return store.jobs.begin(store.jobs.submit("inspect", {"model": "a"}).id)

    def test_it_is_written_four_times_a_second_and_at_each_end_of_a_stage(
        self, store: Store, job: JobView, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moment = 100.0
        monkeypatch.setattr("bitplan.api.jobs.progress.time.monotonic", lambda: moment)
        tell = JobProgress(store, job.id, lambda: None)
        for done in range(101):  # one second in a hundred steps
            tell("estimate", done, 100)
            moment += 0.01
        tell("solve", 0, 1)
        now = store.jobs.get(job.id)
        assert now.version - job.version <= 7
        assert now.progress == Progress(stage="solve", done=0, total=1, fraction=0.0, eta_seconds=None)

    @pytest.mark.parametrize(("first", "eta"), [(0, 15.0), (5, 30.0)])
    def test_the_time_left_follows_from_the_pace_since_work_was_taken_up(
        self, first: int, eta: float, store: Store, job: JobView, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moment = 100.0
        monkeypatch.setattr("bitplan.api.jobs.progress.time.monotonic", lambda: moment)
        tell = JobProgress(store, job.id, lambda: None)
        tell("estimate", first, 40)
        moment += 5.0
        tell("estimate", 10, 40)
        expected = Progress(stage="estimate", done=10, total=40, fraction=0.25, eta_seconds=eta)
        assert store.jobs.get(job.id).progress == expected

    def test_a_job_that_is_called_off_or_gone_stops_its_work(self, store: Store, job: JobView) -> None:
        store.jobs.cancel(job.id)
        with pytest.raises(Interrupted, match="kept"):
            JobProgress(store, job.id, lambda: None)("load", 0, 1)
        with pytest.raises(NotFound):
            JobProgress(store, "job_gone", lambda: None)("load", 0, 1)


class TestListening:
    def test_many_listeners_of_one_job_cost_as_much_as_one(
        self, jobs: Jobs, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bitplan.api.jobs.watching.POLL_SECONDS", 0.1)
        looks: list[str] = []

        def look(job_id: str) -> JobView:
            looks.append(job_id)
            if len(looks) == 3:
                store.jobs.begin(job_id)
            if len(looks) == 5:
                store.jobs.finish(job_id, {"answer": 1})
            return jobs.get(job_id)

        async def listen(glances: Glances, after: int) -> list[str]:
            return [now.status async for now in glances.changes(job, after)]

        async def listen_all() -> list[list[str]]:
            glances = Glances(look)
            return await asyncio.gather(*(listen(glances, after) for after in [0] * 30 + [1] * 30))

        job = jobs.submit("inspect", {"model": "a"})
        assert asyncio.run(listen_all()) == [["queued", "running", "succeeded"]] * 30 + [["running", "succeeded"]] * 30
        assert len(looks) <= 8


class TestPresence:
    """Who is alive, by a clock of one's own."""

    def worker(self, beat: int, **changes: Any) -> WorkerView:
        values: dict[str, Any] = {"id": "w", "host": "elsewhere", "pid": 1, "process_started": 0.0, "version": "1", **changes}
        return WorkerView(beat=beat, **values)

    def test_a_counter_that_stands_still_for_long_is_a_death(self) -> None:
        moment = 0.0
        watch = Watch("here", lambda: moment)
        assert watch.dead([self.worker(1)]) == set()
        moment = DEAD_SECONDS - 1
        assert watch.dead([self.worker(1)]) == set()
        assert watch.silent_seconds(self.worker(1)) == DEAD_SECONDS - 1
        moment = DEAD_SECONDS
        assert watch.dead([self.worker(1)]) == {"w"}
        assert watch.dead([self.worker(2)]) == set()

    def test_a_time_in_which_nobody_could_look_kills_nobody(self) -> None:
        moment = 0.0
        watch = Watch("here", lambda: moment, longest_look=4.0)
        for moment in (0.0, 2.0, 3600.0, 3602.0):  # noqa: B007  (the clock looks at it)
            assert watch.dead([self.worker(1)]) == set()
        assert watch.silent_seconds(self.worker(1)) == 2.0 + 4.0 + 2.0

    def test_on_one_machine_the_process_itself_is_looked_at(self, store: Store) -> None:
        presence = Presence(store)
        presence.beat()
        presence.working_on("job_1")
        [row] = store.workers.list()
        assert (row.pid, row.host, row.job_id, row.beat) == (os.getpid(), host_name(), "job_1", 2)
        assert Watch(host_name()).dead([row]) == set()
        assert not process_lives(row.model_copy(update={"process_started": row.process_started - 100}))
        with subprocess.Popen([sys.executable, "-c", ""]) as gone:
            gone.wait()
        assert Watch(host_name()).dead([row.model_copy(update={"pid": gone.pid})]) == {row.id}
        assert Watch("elsewhere").dead([row.model_copy(update={"pid": gone.pid})]) == set()
        presence.leave()
        assert store.workers.list() == []


class TestAsking:
    def test_before_a_worker_has_made_the_engines_tables_jobs_are_kept_in_the_store(self, jobs: Jobs) -> None:
        job = jobs.submit("inspect", {"model": "a"}, owner="me")
        assert (job.status, job.attempt, job.owner, job.parent) == ("queued", 0, "me", None)
        assert jobs.submit("inspect", {"model": "a"}).id == job.id
        assert [found.id for found in jobs.list(owner="me").items] == [job.id]
        assert jobs.list(kind="plan").items == []
        assert jobs.cancel(job.id).status == "canceled"
        assert jobs.submit("inspect", {"model": "a"}).id != job.id
        assert jobs.counts() == {("inspect", "canceled"): 1, ("inspect", "queued"): 1}
        assert jobs.engine.forget(datetime.now(UTC)) == 0

    @pytest.mark.parametrize(
        ("store", "engine"),
        [
            ("sqlite:////home/bitplan.db", "sqlite:////home/bitplan-jobs.db"),
            ("postgresql://me:secret@host/name?sslmode=require", "postgresql+psycopg://me:secret@host/name?sslmode=require"),
        ],
    )
    def test_the_engine_has_a_place_of_its_own(self, store: str, engine: str) -> None:
        assert engine_url(store) == engine


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Store, Jobs]]:
    """A worker that is kept alive, whose networks are made up, some of them deadly."""
    settings = Settings.from_environment(tmp_path_factory.mktemp("served"))
    with closing(Store.open(settings.database_url)) as store, closing(Engine(settings.database_url)) as engine:
        early = store.jobs.submit("inspect", {"model": "early"})  # a row that nobody asked the engine for
        with pytest.MonkeyPatch.context() as patch, Supervisor(settings, worker_command(KILLER)):
            patch.setattr("bitplan.api.jobs.supervisor.LONGEST_PAUSE_SECONDS", 0.1)
            assert ended(Jobs(store, engine), early).status == "succeeded"
            yield settings, store, Jobs(store, engine)


class TestWorkflows:
    def test_every_kind_of_job_is_done(self, served: tuple[Settings, Store, Jobs]) -> None:
        settings, store, jobs = served
        profiled = ended(jobs, jobs.submit("profile", {"model": "tiny"}))
        planned = ended(jobs, jobs.submit("plan", PLAN))
        assert (profiled.error, planned.error) == (None, None)
        profile_id = fakes.report(ProfileRequest("tiny")).id
        assert profiled.result == {"profile_id": profile_id, "href": f"/v1/profiles/{profile_id}"}
        assert planned.result is not None
        plan_id = planned.result["plan_id"]
        assert store.plan(plan_id).id == fakes.plan("25%").id
        verified = ended(jobs, jobs.submit("verify", {"plan_id": plan_id}))
        assert verified.result == {"plan_id": plan_id, "passed": True, "href": f"/v1/plans/{plan_id}"}
        assert store.plan(plan_id).evidence is not None
        for _ in range(2):
            executed = ended(jobs, jobs.submit("execute", {"plan_id": plan_id, "to": "bitplan"}))
            assert executed.error is None
            assert [path.name for path in (settings.home / "exports" / plan_id / "bitplan").iterdir()] == ["plan.json"]

    def test_a_plan_asks_for_what_it_lacks(self, served: tuple[Settings, Store, Jobs]) -> None:
        _, store, jobs = served
        job = ended(jobs, jobs.submit("plan", {"model": "fresh", "budget": "30%", "verify": True}, owner="me"))
        assert job.result is not None
        assert store.plan(job.result["plan_id"]).evidence is not None
        children = jobs.list(parent=job.id).items
        assert [(child.kind, child.owner, child.status) for child in reversed(children)] == [
            (kind, "me", "succeeded") for kind in ("inspect", "profile", "verify")
        ]

    def test_a_sweep_measures_each_profile_once_and_fails_only_the_cells_that_cannot_be(
        self, served: tuple[Settings, Store, Jobs]
    ) -> None:
        _, store, jobs = served
        body = {"models": ["swept", "broken"], "budgets": ["30%", "1%", "50%"], "verify": True}
        job = ended(jobs, jobs.submit("sweep", body))
        assert job.result is not None
        assert (job.result["plans"], job.result["failed"]) == (2, 4)
        cells = store.sweeps.of_job(job.id).cells
        expected = [None, "budget-infeasible", None, *["model-unreadable"] * 3]
        assert [cell.error and cell.error.type.removeprefix("/problems/") for cell in cells] == expected
        assert [cell.plan and cell.plan.verified for cell in cells] == [True, None, True, None, None, None]
        assert len([child for child in jobs.list(parent=job.id).items if child.kind == "profile"]) == 1

    def test_an_infeasible_budget_fails_before_anything_is_measured(self, served: tuple[Settings, Store, Jobs]) -> None:
        _, _, jobs = served
        job = ended(jobs, jobs.submit("plan", {"model": "never", "budget": "1%"}))
        assert job.error is not None
        assert job.error.type == "/problems/budget-infeasible"
        assert 0 < job.error.model_dump()["minimum_bytes"] < fakes.inventory().native_bytes
        assert [child.kind for child in jobs.list(parent=job.id).items] == ["inspect"]

    def test_what_kills_its_worker_again_and_again_is_given_up_and_nothing_else(
        self, served: tuple[Settings, Store, Jobs]
    ) -> None:
        _, store, jobs = served
        poison = jobs.submit("sweep", {"models": ["poison", "harmless"], "budgets": ["30%"]})
        others = [jobs.submit("inspect", {"model": f"m{number}"}) for number in range(3)]
        assert [ended(jobs, job).status for job in others] == ["succeeded"] * 3
        assert ended(jobs, poison).status == "succeeded"
        cells = store.sweeps.of_job(poison.id).cells
        assert [cell.status for cell in cells] == ["failed", "succeeded"]
        assert cells[0].error is not None
        assert cells[0].error.type == "/problems/worker-lost"
        assert "died 3 times at the same place" in cells[0].error.detail

    def test_a_parent_that_is_called_off_calls_off_its_children(self, served: tuple[Settings, Store, Jobs]) -> None:
        _, _, jobs = served
        sweep = jobs.submit("sweep", {"models": ["slow"], "budgets": ["30%", "50%"]})
        until(jobs, sweep, lambda now: now.progress is not None)
        [child] = jobs.list(parent=sweep.id).items
        assert jobs.cancel(sweep.id).status == "canceling"
        assert ended(jobs, sweep).status == "canceled"
        assert ended(jobs, child).status == "canceled"
        assert jobs.cancel(sweep.id).status == "canceled"

    def test_a_child_that_two_parents_want_outlives_the_one_that_asked_for_it(self, served: tuple[Settings, Store, Jobs]) -> None:
        _, _, jobs = served
        first = jobs.submit("plan", {"model": "slow too", "budget": "30%"})
        until(jobs, first, lambda now: now.progress is not None)
        second = jobs.submit("plan", {"model": "slow too", "budget": "50%"})
        until(jobs, second, lambda now: now.progress is not None)
        assert len([job for job in jobs.list(kind="inspect").items if job.input["model"] == "slow too"]) == 1
        jobs.cancel(first.id)
        assert ended(jobs, second).status == "succeeded"
        assert ended(jobs, first).status == "canceled"

    def test_what_does_not_stop_when_called_off_is_ended_with_its_worker(self, served: tuple[Settings, Store, Jobs]) -> None:
        _, _, jobs = served
        stubborn = jobs.submit("inspect", {"model": "stubborn"})
        until(jobs, stubborn, lambda now: now.status == "running")
        assert jobs.cancel(stubborn.id).status == "canceling"
        assert ended(jobs, stubborn).status == "canceled"
        assert ended(jobs, jobs.submit("inspect", {"model": "after"})).status == "succeeded"

    def test_what_ended_long_ago_is_forgotten_by_the_engine(self, served: tuple[Settings, Store, Jobs]) -> None:
        _, _, jobs = served
        ended(jobs, job := jobs.submit("inspect", {"model": "forgotten"}))
        assert jobs.engine.forget(datetime.now(UTC) - timedelta(days=1)) == 0
        count = jobs.engine.forget(datetime.now(UTC) + timedelta(days=1), dry_run=True)
        assert count > 0
        assert jobs.engine.states([job.id])
        assert jobs.engine.forget(datetime.now(UTC) + timedelta(days=1)) == count
        assert not jobs.engine.states([job.id])
        assert jobs.get(job.id).status == "succeeded"


class TestProcesses:
    def test_a_killed_worker_is_replaced_and_its_job_goes_on_at_the_first_unfinished_step(
        self, jobs: Jobs, store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BITPLAN_JOURNAL", str(tmp_path / "journal"))
        job = jobs.submit("profile", {"model": "tiny"})
        with Supervisor(settings, worker_command(SLOW.replace("0.02", "0.005"))) as supervisor:
            journal = tmp_path / "journal"
            until(jobs, job, lambda now: journal.exists() and len(journal.read_text().splitlines()) == 2)
            assert supervisor.worker_pid is not None
            os.kill(supervisor.worker_pid, signal.SIGKILL)
            done = ended(jobs, job)
            assert supervisor.worker_pid in [worker.pid for worker in store.workers.list()]
        assert (done.status, done.attempt) == ("succeeded", 2)
        pieces = [line.split("\t")[0].partition(" ")[2] for line in journal.read_text().splitlines()]
        assert pieces == [f"piece {number}" for number in range(5)]

    def test_a_leaving_worker_stops_at_the_next_report_and_cancels_take_effect_there(
        self, jobs: Jobs, settings: Settings
    ) -> None:
        """Its cord is cut; whoever comes next goes on."""
        job = jobs.submit("inspect", {"model": "tiny"})
        environment = {**os.environ, "BITPLAN_DATABASE_URL": settings.database_url}
        command = [*worker_command(SLOW), "--home", str(settings.home)]
        for last in (False, True):
            with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as worker:
                if last:
                    assert ended(jobs, job).attempt == 2
                    doomed = jobs.submit("inspect", {"model": "doomed"})
                    until(jobs, doomed, lambda now: now.progress is not None)
                    jobs.cancel(doomed.id)
                    assert ended(jobs, doomed).status == "canceled"
                else:
                    until(jobs, job, lambda now: now.progress is not None)
                assert worker.stdin is not None
                worker.stdin.close()
                assert worker.wait(20) == 0

    def test_a_second_worker_of_a_file_waits_and_jobs_of_another_version_are_left_alone(
        self, jobs: Jobs, store: Store, settings: Settings
    ) -> None:
        other = "import bitplan.api.jobs.engine as engine; engine.WORKFLOWS_VERSION = 99"
        with Supervisor(settings, worker_command()), Supervisor(settings, worker_command()):
            asked = [jobs.submit("inspect", {"model": f"m{number}"}) for number in range(5)]
            assert [ended(jobs, job).attempt for job in asked] == [1] * 5
            assert len(store.workers.list()) == 1
        late = jobs.submit("inspect", {"model": "late"})  # asked of the engine in this version
        with Supervisor(settings, worker_command(other)):
            waits = until(jobs, late, lambda now: now.progress is not None)
            assert waits.status == "queued"
            assert waits.progress is not None
            assert waits.progress.stage.startswith("waiting for a worker of version ")
        with Supervisor(settings, worker_command()):
            assert ended(jobs, late).status == "succeeded"

    def test_jobs_go_on_when_the_database_is_back(self, tmp_path: Path) -> None:
        """It is away while work is under way, for longer than any single call waits."""
        with postgres.fresh_database() as url, postgres.Line(url) as line, closing(Store.open(url)) as store:
            settings = Settings.from_environment(tmp_path / "home", line.url)
            with closing(Engine(url)) as engine, Supervisor(settings, worker_command(SLOW)):
                jobs = Jobs(store, engine)
                job = jobs.submit("profile", {"model": "tiny"})
                before = until(jobs, job, lambda now: now.progress is not None and now.progress.stage == "render")
                line.cut()
                time.sleep(3.0)
                assert jobs.get(job.id).version <= before.version + 4
                line.mend()
                done = ended(jobs, job)
        assert (done.status, done.attempt) == ("succeeded", 1)
