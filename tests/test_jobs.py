"""Jobs: the steps a row may take, what the worker does with each kind, and that no kill loses or repeats work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import fakes
from bitplan.allocator import ProfileRequest
from bitplan.allocator.errors import Interrupted, NotFound
from bitplan.api.jobs.supervisor import Supervisor
from bitplan.api.jobs.work import WORK, JobProgress
from bitplan.api.jobs.worker import do_job, serve_jobs
from bitplan.api.schema import JobView, Progress
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from bitplan.api.store.jobs import ATTEMPTS, JobQueue

PLAN = {"model": "tiny", "budget": "25%"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(tmp_path / "home")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with closing(Store.open(settings.database_url)) as store:
        yield store


@pytest.fixture
def queue(store: Store) -> JobQueue:
    return store.jobs


def ended(store: Store, job: JobView, within_seconds: float = 20.0) -> JobView:
    """The job once it has ended; fails when it does not."""
    return until(store, job, lambda now: now.finished, within_seconds)


def until(store: Store, job: JobView, holds: Callable[[JobView], bool], within_seconds: float = 20.0) -> JobView:
    deadline = time.monotonic() + within_seconds
    while not holds(now := store.jobs.get(job.id)):
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    return now


class TestRows:
    def test_jobs_are_taken_up_in_the_order_they_came(self, queue: JobQueue) -> None:
        first, second = queue.submit("inspect", {"model": "a"}), queue.submit("inspect", {"model": "b"})
        assert (first.status, first.attempt, first.started_at) == ("queued", 0, None)
        taken = [queue.claim(), queue.claim(), queue.claim()]
        assert [job and job.id for job in taken] == [first.id, second.id, None]
        assert taken[0] is not None
        assert (taken[0].status, taken[0].attempt) == ("running", 1)
        assert [job.id for job in queue.list().items] == [second.id, first.id]
        assert [job.id for job in queue.list(status="queued").items] == []

    def test_the_same_work_is_one_job_until_it_has_ended(self, queue: JobQueue) -> None:
        job = queue.submit("plan", {"model": "a", "budget": "1"})
        assert queue.submit("plan", {"budget": "1", "model": "a"}).id == job.id
        assert queue.submit("profile", {"model": "a", "budget": "1"}).id != job.id
        assert queue.submit("plan", {"model": "a", "budget": "2"}).id != job.id
        queue.claim()
        assert queue.submit("plan", {"model": "a", "budget": "1"}).id == job.id
        queue.finish(job.id, {})
        assert queue.submit("plan", {"model": "a", "budget": "1"}).id != job.id

    def test_a_job_asked_to_stop_is_not_the_job_of_a_new_request(self, queue: JobQueue) -> None:
        job = queue.submit("inspect", {"model": "a"})
        queue.claim()
        assert queue.cancel(job.id).status == "canceling"
        assert queue.submit("inspect", {"model": "a"}).id != job.id

    def test_a_queued_job_is_canceled_at_once(self, queue: JobQueue) -> None:
        job = queue.cancel(queue.submit("inspect", {"model": "a"}).id)
        assert (job.status, job.finished) == ("canceled", True)
        assert queue.claim() is None

    def test_an_ended_job_never_changes(self, queue: JobQueue) -> None:
        job = queue.submit("inspect", {"model": "a"})
        queue.claim()
        queue.finish(job.id, {"answer": 1})
        before = queue.get(job.id)
        queue.finish(job.id, problem={"status": 500})
        queue.release(job.id)
        queue.recover()
        assert queue.cancel(job.id) == queue.get(job.id) == before
        assert before.result == {"answer": 1}

    def test_every_step_raises_the_version(self, queue: JobQueue) -> None:
        job = queue.submit("inspect", {"model": "a"})
        versions = [job.version]
        queue.claim()
        versions.append(queue.get(job.id).version)
        assert queue.report(job.id, Progress(stage="load", done=1, total=2, fraction=0.5, eta_seconds=1.0))
        versions.append(queue.get(job.id).version)
        queue.cancel(job.id)
        versions.append(queue.get(job.id).version)
        assert not queue.report(job.id, Progress(stage="load", done=2, total=2, fraction=1.0, eta_seconds=0.0))
        queue.finish(job.id)
        versions.append(queue.get(job.id).version)
        assert versions == sorted(set(versions))
        assert queue.get(job.id).status == "canceled"

    def test_the_jobs_of_a_dead_worker_are_taken_up_again_but_not_for_ever(self, queue: JobQueue) -> None:
        job = queue.submit("inspect", {"model": "a"})
        for attempt in range(1, ATTEMPTS + 1):
            taken = queue.claim()
            assert taken is not None
            assert taken.attempt == attempt
            queue.recover()
        last = queue.get(job.id)
        assert last.status == "failed"
        assert last.error is not None
        assert last.error.type == "/problems/worker-lost"

    def test_a_job_given_back_by_a_leaving_worker_loses_no_attempt(self, queue: JobQueue) -> None:
        job = queue.submit("inspect", {"model": "a"})
        for _ in range(ATTEMPTS + 2):
            queue.claim()
            queue.release(job.id)
        assert (queue.get(job.id).status, queue.get(job.id).attempt) == ("queued", 0)

    def test_a_dead_workers_job_that_was_to_stop_is_canceled(self, queue: JobQueue) -> None:
        job = queue.submit("inspect", {"model": "a"})
        queue.claim()
        queue.cancel(job.id)
        queue.recover()
        assert queue.get(job.id).status == "canceled"

    def test_counts_are_by_kind_and_status(self, queue: JobQueue) -> None:
        queue.submit("inspect", {"model": "a"})
        queue.submit("inspect", {"model": "b"})
        queue.submit("profile", {"model": "a"})
        queue.claim()
        assert queue.counts() == {("inspect", "running"): 1, ("inspect", "queued"): 1, ("profile", "queued"): 1}


class TestWork:
    @pytest.fixture(autouse=True)
    def _fakes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes.install(monkeypatch)

    def do(self, store: Store, settings: Settings, kind: Any, document: dict[str, Any]) -> JobView:
        job = store.jobs.submit(kind, document)
        assert store.jobs.claim() == store.jobs.get(job.id)
        do_job(store.jobs.get(job.id), store, settings.home, threading.Event())
        return store.jobs.get(job.id)

    def test_every_kind_of_job_is_done(self, store: Store, settings: Settings) -> None:
        inspected = self.do(store, settings, "inspect", {"model": "tiny"})
        profiled = self.do(store, settings, "profile", {"model": "tiny"})
        planned = self.do(store, settings, "plan", PLAN)
        assert planned.result is not None
        verified = self.do(store, settings, "verify", {"plan_id": planned.result["plan_id"]})
        assert [job.kind for job in (inspected, profiled, planned, verified)] == list(WORK)
        assert [job.error for job in (inspected, profiled, planned, verified)] == [None] * 4
        profile_id = fakes.report(ProfileRequest("tiny")).id
        assert profiled.result == {"profile_id": profile_id, "href": f"/v1/profiles/{profile_id}"}
        assert inspected.result is not None
        assert store.inventory(inspected.result["fingerprint"]).model_id == "tiny"
        plan = store.plan(planned.result["plan_id"])
        assert plan.evidence is not None
        assert verified.result == {"plan_id": plan.id, "passed": True, "href": f"/v1/plans/{plan.id}"}

    def test_a_plan_that_is_to_be_verified_is(self, store: Store, settings: Settings) -> None:
        job = self.do(store, settings, "plan", {**PLAN, "verify": True})
        assert job.result is not None
        assert store.plan(job.result["plan_id"]).evidence is not None
        assert len(store.profiles().items) == 1

    def test_an_infeasible_budget_fails_at_the_stage_inspect(self, store: Store, settings: Settings) -> None:
        job = self.do(store, settings, "plan", {"model": "tiny", "budget": "1%"})
        assert job.status == "failed"
        assert job.error is not None
        assert job.progress is not None
        assert job.progress.stage == "inspect"
        problem = job.error.model_dump()
        assert problem["type"] == "/problems/budget-infeasible"
        assert 0 < problem["minimum_bytes"] < problem["maximum_bytes"] == fakes.inventory().native_bytes

    def test_an_unreadable_model_fails_the_job_with_its_sentence(self, store: Store, settings: Settings) -> None:
        job = self.do(store, settings, "inspect", {"model": "broken"})
        assert job.error is not None
        assert (job.error.type, job.error.status) == ("/problems/model-unreadable", 422)
        assert job.error.detail == "model 'broken' is truncated; fetch it again"

    def test_a_defect_fails_the_job_and_the_worker_goes_on(
        self, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def defect(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("by zero")

        monkeypatch.setattr("bitplan.allocator.inspect_model", defect)
        job = self.do(store, settings, "inspect", {"model": "tiny"})
        assert job.error is not None
        assert job.error.type == "/problems/internal-error"
        assert "ZeroDivisionError: by zero" in job.error.detail
        assert "Traceback" in capsys.readouterr().err

    def test_a_job_is_canceled_through_its_progress(
        self, store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slow(model: str, *, home: Path, progress: Any, stream: bool) -> None:
            for done in range(10_000):
                progress("load", done, 10_000)
                time.sleep(0.001)

        monkeypatch.setattr("bitplan.allocator.inspect_model", slow)
        job = store.jobs.submit("inspect", {"model": "tiny"})
        stop = threading.Event()
        worker = threading.Thread(target=serve_jobs, args=(store, settings.home, stop))
        worker.start()
        try:
            until(store, job, lambda now: now.status == "running")
            store.jobs.cancel(job.id)
            assert ended(store, job, 5).status == "canceled"
        finally:
            stop.set()
            worker.join(5)

    def test_a_leaving_worker_gives_its_job_back(self, store: Store, settings: Settings) -> None:
        job = store.jobs.submit("plan", PLAN)
        store.jobs.claim()
        stop = threading.Event()
        stop.set()
        do_job(store.jobs.get(job.id), store, settings.home, stop)
        assert (store.jobs.get(job.id).status, store.jobs.get(job.id).attempt) == ("queued", 0)


class TestProgress:
    def test_it_is_written_four_times_a_second_and_at_each_end_of_a_stage(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moment = 100.0
        monkeypatch.setattr("bitplan.api.jobs.work.time.monotonic", lambda: moment)
        job = store.jobs.submit("inspect", {"model": "a"})
        store.jobs.claim()
        tell = JobProgress(store, job.id, lambda: False)
        version = store.jobs.get(job.id).version
        for done in range(101):  # one second in a hundred steps
            tell("estimate", done, 100)
            moment += 0.01
        tell("solve", 0, 1)
        assert store.jobs.get(job.id).version - version <= 7
        assert store.jobs.get(job.id).progress == Progress(stage="solve", done=0, total=1, fraction=0.0, eta_seconds=None)

    def test_the_time_left_follows_from_the_pace(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        moment = 100.0
        monkeypatch.setattr("bitplan.api.jobs.work.time.monotonic", lambda: moment)
        job = store.jobs.submit("inspect", {"model": "a"})
        store.jobs.claim()
        tell = JobProgress(store, job.id, lambda: False)
        tell("estimate", 0, 40)
        moment += 5.0
        tell("estimate", 10, 40)
        assert store.jobs.get(job.id).progress == Progress(stage="estimate", done=10, total=40, fraction=0.25, eta_seconds=15.0)

    def test_a_job_that_is_gone_stops_its_worker(self, store: Store) -> None:
        with pytest.raises(NotFound):
            JobProgress(store, "job_gone", lambda: False)("load", 0, 1)

    def test_a_stopping_worker_interrupts(self, store: Store) -> None:
        with pytest.raises(Interrupted, match="kept"):
            JobProgress(store, "job_any", lambda: True)("load", 0, 1)


WORKER = """
import sys, time
sys.path.insert(0, {tests!r})
import fakes
from bitplan.api.jobs.worker import main
fakes.install()
if {slow}:
    fakes._tell = lambda progress, stage, total: [(progress(stage, done, 10), time.sleep(0.02)) for done in range(11)]
main()
"""


def worker_command(slow: bool) -> list[str]:
    return [sys.executable, "-c", WORKER.format(tests=str(Path(__file__).parent), slow=slow)]


class TestProcesses:
    def test_a_killed_worker_is_replaced_and_its_job_ends(self, store: Store, settings: Settings) -> None:
        job = store.jobs.submit("plan", PLAN)
        with Supervisor(settings, worker_command(slow=True)) as supervisor:
            until(store, job, lambda now: now.progress is not None and now.progress.stage == "estimate")
            assert supervisor.worker_pid is not None
            os.kill(supervisor.worker_pid, signal.SIGKILL)
            done = ended(store, job)
            assert store.worker_alive()
        assert (done.status, done.attempt) == ("succeeded", 2)
        assert done.result is not None
        assert store.plan(done.result["plan_id"]).model.id == "tiny"

    def test_a_worker_ends_when_its_cord_is_cut(self, settings: Settings) -> None:
        options = ["--home", str(settings.home), "--database-url", settings.database_url]
        with subprocess.Popen([*worker_command(slow=False), *options], stdin=subprocess.PIPE) as worker:
            with closing(Store.open(settings.database_url)) as store:
                ended(store, store.jobs.submit("inspect", {"model": "tiny"}))
            assert worker.stdin is not None
            worker.stdin.close()
            assert worker.wait(8) == 0

    def test_a_second_worker_waits_for_the_first_and_both_end_with_their_supervisors(
        self, store: Store, settings: Settings
    ) -> None:
        command = worker_command(slow=False)
        with Supervisor(settings, command), Supervisor(settings, command):
            jobs = [store.jobs.submit("inspect", {"model": f"m{number}"}) for number in range(5)]
            assert [ended(store, job).attempt for job in jobs] == [1] * 5
        began = time.monotonic()
        job = store.jobs.submit("inspect", {"model": "late"})
        while time.monotonic() - began < 0.6:
            assert store.jobs.get(job.id).status == "queued"
            time.sleep(0.1)
