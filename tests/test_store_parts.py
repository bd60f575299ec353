"""The parts of the store beside plans: jobs' owners, sweeps, keys, workers, replies, models; on every kind of database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

import fakes
from bitplan.allocator import ProfileRequest
from bitplan.allocator.errors import NotFound, UsageError
from bitplan.api.problems import problem_of
from bitplan.api.schema import InspectBody, ProfileBody, SweepBody, WorkerView
from bitplan.api.store import Store, keys
from bitplan.api.store.replies import Reply

BODY = SweepBody(models=("a", "b"), metrics=("kl_fisher", "uniform"), targets=("native",), budgets=("25%", "30%", "35%"))


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store.open(store_url)) as store:
        yield store


def at_once(work: Callable[[int], Any], workers: int = 6) -> list[Any]:
    """The results of `work` in as many threads, all let go at the same moment."""
    barrier, results = threading.Barrier(workers), []

    def run(number: int) -> None:
        barrier.wait(10)
        try:
            results.append(work(number))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


class TestJobs:
    def test_a_job_knows_its_owner_and_parent_and_is_found_by_them(self, store: Store) -> None:
        sweep = store.jobs.submit("sweep", {"n": 0}, owner="ann")
        child = store.jobs.submit("plan", {"n": 1}, owner="ann", parent=sweep.id)
        other = store.jobs.submit("plan", {"n": 2}, owner="bob")
        assert (child.owner, child.parent) == ("ann", sweep.id)
        assert store.jobs.get(child.id) == child
        lists = {
            "owner": store.jobs.list(owner="ann"),
            "parent": store.jobs.list(parent=sweep.id),
            "kind": store.jobs.list(kind="plan"),
            "all": store.jobs.list("queued", kind="plan", owner="bob"),
        }
        assert {name: [job.id for job in found.items] for name, found in lists.items()} == {
            "owner": [child.id, sweep.id],
            "parent": [child.id],
            "kind": [other.id, child.id],
            "all": [other.id],
        }

    def test_the_same_work_asked_for_at_once_is_one_job(self, store: Store) -> None:
        asked = at_once(lambda number: store.jobs.submit("plan", {"model": "m"}, owner=str(number)).id)
        assert len(asked) == 6
        assert len(set(asked)) == 1
        assert len(store.jobs.list().items) == 1

    def test_beginning_counts_attempts_and_leaves_what_is_to_stop(self, store: Store) -> None:
        job = store.jobs.submit("plan", {"model": "m"})
        assert store.jobs.begin(job.id).attempt == 1
        again = store.jobs.begin(job.id)
        assert (again.attempt, again.status) == (2, "running")
        store.jobs.cancel(job.id)
        assert store.jobs.begin(job.id).status == "canceling"
        store.jobs.finish(job.id)
        ended = store.jobs.get(job.id)
        assert store.jobs.begin(job.id) == ended

    def test_finishing_and_canceling_at_once_end_in_one_state_that_stays(self, store: Store) -> None:
        for number in range(5):
            job = store.jobs.submit("plan", {"number": number})
            store.jobs.begin(job.id)

            def race(worker: int, job_id: str = job.id) -> Any:
                return store.jobs.finish(job_id, {"ok": worker}) if worker % 2 else store.jobs.cancel(job_id).status

            results = at_once(race, 4)
            assert not [result for result in results if isinstance(result, Exception)]
            ended = store.jobs.get(job.id)
            assert ended.status == "succeeded"
            assert ended.result is not None
            store.jobs.cancel(job.id)
            store.jobs.finish(job.id, problem={"type": "x", "title": "x", "status": 500, "detail": "x"})
            assert store.jobs.get(job.id) == ended

    def test_the_unfinished_are_found_oldest_first(self, store: Store) -> None:
        jobs = [store.jobs.submit("plan", {"number": number}) for number in range(3)]
        store.jobs.begin(jobs[1].id)
        store.jobs.cancel(jobs[0].id)
        assert [job.id for job in store.jobs.active()] == [jobs[1].id, jobs[2].id]
        assert [job.id for job in store.jobs.active("queued")] == [jobs[2].id]


class TestSweeps:
    def test_cells_stand_in_the_order_models_metrics_targets_budgets(self, store: Store) -> None:
        job = store.jobs.submit("sweep", BODY.model_dump(mode="json"))
        sweep = store.sweeps.create(BODY, job.id, "ann")
        assert [cell.index for cell in sweep.cells] == list(range(12))
        assert [(cell.model, cell.metric, cell.budget) for cell in sweep.cells][:4] == [
            ("a", "kl_fisher", "25%"),
            ("a", "kl_fisher", "30%"),
            ("a", "kl_fisher", "35%"),
            ("a", "uniform", "25%"),
        ]
        assert (sweep.owner, sweep.status, sweep.request) == ("ann", "queued", BODY)
        assert store.sweeps.get(sweep.id) == sweep == store.sweeps.of_job(job.id)
        assert store.sweeps.list().items == [sweep]

    def test_a_job_has_one_sweep_however_often_it_is_made(self, store: Store) -> None:
        job = store.jobs.submit("sweep", {})
        made = at_once(lambda _: store.sweeps.create(BODY, job.id))
        assert len({sweep.id for sweep in made}) == 1
        assert len(store.sweeps.list().items) == 1

    def test_cells_show_their_plans_and_problems(self, store: Store) -> None:
        plan = fakes.plan()
        store.put_plan(plan)
        sweep = store.sweeps.create(BODY, store.jobs.submit("sweep", {}).id)
        store.sweeps.start(sweep.id, 0)
        store.sweeps.start(sweep.id, 2)
        store.sweeps.settle(sweep.id, 0, plan_id=plan.id)
        store.sweeps.settle(sweep.id, 1, problem=problem_of(UsageError("no")))
        store.sweeps.start(sweep.id, 0)  # a job taken up again begins at its beginning
        store.attach_evidence(plan.id, fakes.evidence(plan))
        cells = store.sweeps.get(sweep.id).cells
        assert [cell.status for cell in cells[:4]] == ["succeeded", "failed", "running", "queued"]
        assert cells[0].plan == store.plans().items[0]
        assert cells[0].plan is not None
        assert cells[0].plan.measured_loss == pytest.approx(1.1 * plan.predicted.loss)
        assert cells[1].error is not None
        assert cells[1].error.detail == "no"
        store.delete_plan(plan.id)
        assert store.sweeps.get(sweep.id).cells[0].plan is None
        with pytest.raises(NotFound, match="no cell 12"):
            store.sweeps.settle(sweep.id, 12, plan_id=plan.id)

    def test_the_same_request_finds_the_sweep_that_is_of_use(self, store: Store) -> None:
        assert store.sweeps.find(BODY) is None
        first = store.jobs.submit("sweep", BODY.model_dump(mode="json"))
        sweep = store.sweeps.create(BODY, first.id)
        assert store.sweeps.find(BODY) == sweep
        assert store.sweeps.find(BODY.model_copy(update={"seed": 1})) is None
        store.jobs.begin(first.id)
        store.jobs.finish(first.id, problem=problem_of(UsageError("no")))
        assert store.sweeps.find(BODY) is None

    def test_a_sweep_that_is_too_large_and_one_that_is_missing(self, store: Store) -> None:
        with pytest.raises(UsageError, match="10100 plans is too large"):
            store.sweeps.create(BODY.model_copy(update={"models": ("m",) * 101, "budgets": ("1",) * 50}), "job")
        with pytest.raises(NotFound, match="no sweep 'sweep_0'"):
            store.sweeps.get("sweep_0")

    def test_pages_of_sweeps(self, store: Store) -> None:
        made = [store.sweeps.create(BODY, store.jobs.submit("sweep", {"n": n}).id).id for n in range(3)]
        first = store.sweeps.list(limit=2)
        second = store.sweeps.list(first.next_cursor, limit=2)
        assert [sweep.id for sweep in [*first.items, *second.items]] == made[::-1]
        assert all(len(sweep.cells) == 12 for sweep in first.items)


class TestKeys:
    def test_a_secret_opens_and_is_kept_nowhere(self, store: Store) -> None:
        key, secret = store.keys.create("ann", "plan")
        assert len(secret) == 46
        assert secret.startswith(key.prefix)
        assert key.prefix.startswith("bp_")
        found = store.keys.check(secret)
        assert found is not None
        assert (found.id, found.name, found.scope) == (key.id, "ann", "plan")
        for wrong in ("", "bp_", secret[:-1], secret + "x", secret.upper(), key.prefix, "\ud800"):
            assert store.keys.check(wrong) is None
        with store.database.read() as session:
            row = session.connection().exec_driver_sql("SELECT * FROM keys").one()
        assert not any(secret[11:] in str(value) for value in row)

    def test_revoked_and_expired_keys_open_nothing(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        revoked, first = store.keys.create("ann", "read")
        short, second = store.keys.create("bob", "admin", days=1)
        assert short.expires_at is not None
        assert store.keys.check(second) is not None
        assert store.keys.revoke(revoked.id).revoked
        assert store.keys.revoke(revoked.id).revoked
        assert store.keys.check(first) is None
        monkeypatch.setattr(keys, "timestamp", lambda seconds_ago=0.0: "9999-01-01T00:00:00.000Z")
        assert store.keys.check(second) is None
        assert {key.name: key.revoked for key in store.keys.list()} == {"ann": True, "bob": False}
        with pytest.raises(NotFound):
            store.keys.revoke("key_0")

    def test_a_use_is_written_down_now_and_then(self, store: Store) -> None:
        key, secret = store.keys.create("ann", "read")
        assert key.last_used_at is None
        store.keys.check(secret)
        used = store.keys.list()[0].last_used_at
        assert used is not None
        store.keys.check(secret)
        assert store.keys.list()[0].last_used_at == used

    @pytest.mark.parametrize("days", [0.0, -1.0, 1e9, float("nan")])
    def test_lifetimes_that_cannot_be_meant(self, store: Store, days: float) -> None:
        with pytest.raises(UsageError, match="days"):
            store.keys.create("ann", "read", days=days)

    def test_names_that_no_database_holds(self, store: Store) -> None:
        for name in ("a\0b", "\ud800", " "):
            with pytest.raises(UsageError):
                store.keys.create(name, "read")
        assert store.keys.list() == []


def test_workers_beat_and_are_removed(store: Store) -> None:
    worker = WorkerView(id="w1", host="here", pid=7, process_started=1.25, version="0", beat=1, job_id=None)
    later = worker.model_copy(update={"beat": 2**40, "job_id": "job_1"})
    store.workers.beat(worker)
    store.workers.beat(later)
    store.workers.beat(worker.model_copy(update={"id": "w0"}))
    assert store.workers.list() == [worker.model_copy(update={"id": "w0"}), later]
    store.workers.remove("w0")
    store.workers.remove("w0")
    assert store.workers.list() == [later]


class TestReplies:
    def test_senders_at_once_do_the_work_once(self, store: Store) -> None:
        done: list[int] = []
        body = InspectBody(model="m")

        def answer() -> Reply:
            done.append(1)
            return Reply(201, "{}", {"etag": "x"})

        replies = at_once(lambda _: store.replies.answer_once("k", "plans", body, answer))
        assert len(done) == 1
        assert {reply.status for reply in replies} <= {201, 409}
        assert store.replies.answer_once("k", "plans", body, answer) == Reply(201, "{}", {"etag": "x"})
        assert len(done) == 1

    def test_the_keys_of_two_owners_are_two_keys(self, store: Store) -> None:
        body = InspectBody(model="m")
        for owner in ("ann", "bob"):
            reply = store.replies.answer_once("k", "plans", body, partial(Reply, 200, owner, {}), owner)
            assert reply.body == owner

    def test_a_key_is_free_again_when_the_work_failed(self, store: Store) -> None:
        body = InspectBody(model="m")
        with pytest.raises(ZeroDivisionError):
            store.replies.answer_once("k", "plans", body, lambda: Reply(1 // 0, "", {}))
        assert store.replies.answer_once("k", "plans", body, lambda: Reply(200, "", {})).status == 200
        assert store.replies.answer_once("k", "plans", InspectBody(model="n"), lambda: Reply(200, "", {})).status == 422


def test_models_count_their_plans_and_profiles_and_the_last_used_is_first(store: Store) -> None:
    assert store.models() == []
    for model in ("tiny", "experts"):
        store.put_inventory(fakes.inventory(model))
    store.put_profile(fakes.report(ProfileRequest("tiny")), ProfileBody(model="tiny"))
    for budget in ("25%", "30%"):
        store.put_plan(fakes.plan(budget))
    store.put_plan(fakes.plan("25%", "never inspected"))
    models = {model.model: model for model in store.models()}
    assert {name: (model.plans, model.profiles) for name, model in models.items()} == {"tiny": (2, 1), "experts": (0, 0)}
    plan = fakes.plan()
    assert models["tiny"].parameters == plan.model.parameters
    assert (models["tiny"].architecture, models["tiny"].units) == (plan.model.architecture, len(plan.assignment))
    assert [model.last_used_at for model in store.models()] == sorted((m.last_used_at for m in models.values()), reverse=True)


def test_threads_that_put_one_plan_store_it_once(store: Store) -> None:
    plan = fakes.plan()
    kept = at_once(lambda _: store.keep_plan(plan))
    assert sum(stored.new for stored in kept) == 1
    assert {stored.text() for stored in kept} == {plan.model_dump_json()}


def test_a_kept_plan_is_handed_back_with_the_evidence_that_is_stored(store: Store) -> None:
    plan = fakes.plan()
    store.put_plan(plan.model_copy(update={"evidence": fakes.evidence(plan)}))
    again = store.keep_plan(plan)
    assert not again.new
    assert again.plan() == store.plan(plan.id) == type(plan).from_json(again.text())
    assert again.plan().evidence == fakes.evidence(plan)
