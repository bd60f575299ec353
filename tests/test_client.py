"""The clients against the app in the same process, with a worker beside it: the verbs, waiting, and the errors raised.

Every test runs twice, with Client and with AsyncClient, whose verbs are here awaited one after another.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

import bitplan
import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.allocator.errors import (
    BitplanError,
    Forbidden,
    Infeasible,
    Interrupted,
    ModelError,
    NotFound,
    UnknownName,
    UsageError,
)
from bitplan.api.app import create_app
from bitplan.api.client import AsyncClient, Client
from bitplan.api.client.plans import Planning
from bitplan.api.client.profiles import Measuring
from bitplan.api.client.sweeps import Sweeping
from bitplan.api.schema import JobView, PlanBody, ProfileBody, SweepBody
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from hands import hands


class Blocking:
    """An AsyncClient whose verbs are awaited here and now, in one event loop."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verb = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = verb(*args, **kwargs)
            return self._runner.run(made if inspect.iscoroutine(made) else _all(made))

        return call


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitplan.api.client.jobs.FIRST_POLL_SECONDS", 0.03)


@pytest.fixture(params=["Client", "AsyncClient"])
def idle(request: pytest.FixtureRequest, http: TestClient) -> Iterator[Any]:
    """A client of a service without a worker. Both kinds have the same verbs, so one name stands for both."""
    if request.param == "Client":
        yield Client(http=http)
        return
    transport = httpx2.ASGITransport(app=http.app)
    with asyncio.Runner() as runner:
        client = AsyncClient(http=httpx2.AsyncClient(transport=transport, base_url="http://testserver"))
        yield Blocking(client, runner)
        runner.run(client.close())


@pytest.fixture
def client(idle: Any, store: Store, settings: Settings) -> Iterator[Any]:
    """A client of a service with a worker, here a thread."""
    with hands(store, settings):
        yield idle


class TestPlans:
    def test_allocate_waits_for_the_job_and_returns_the_plan(self, client: Any) -> None:
        seen: list[JobView] = []
        plan = client.allocate("tiny", "25%", pins={r".*v_proj": "bf16"}, watch=seen.append)
        assert isinstance(plan, Plan)
        assert plan.assignment["model.layers.0.self_attn.v_proj"] == "bf16"
        assert seen[-1].status == "succeeded"
        assert [job.version for job in seen] == sorted({job.version for job in seen})
        seen.clear()
        assert client.allocate("tiny", "25%", pins={r".*v_proj": "bf16"}, watch=seen.append) == plan
        assert seen == []

    def test_submit_returns_the_job_or_the_plan(self, client: Any) -> None:
        job = client.submit("tiny", "25%")
        assert isinstance(job, JobView)
        ended = client.wait(job)
        assert client.submit("tiny", "25%") == client.plan(ended.result["plan_id"])

    def test_allocate_can_have_the_plan_verified(self, client: Any) -> None:
        client.profile("tiny")
        plan = client.allocate("tiny", "25%", verify=True)
        assert plan.evidence["passed"]
        assert client.allocate("experts", "25%", verify=True).evidence is not None

    def test_verify_returns_the_report_whether_the_promise_was_kept_or_not(self, client: Any) -> None:
        kept, broken = (client.verify(client.allocate(model, "25%")) for model in ("tiny", "liar"))
        assert (kept["passed"], broken["passed"]) == (True, False)
        assert kept["loss"]["measured"] > 0

    def test_stored_plans_are_listed_read_compared_and_deleted(self, client: Any) -> None:
        small, large = client.allocate("tiny", "20%"), client.allocate("tiny", "40%")
        assert [item.id for item in client.plans(model="tiny").items] == [large.id, small.id]
        first = client.plans(limit=1)
        assert [item.id for item in client.plans(cursor=first.next_cursor).items] == [small.id]
        assert client.plan(small.id[:10]) == small
        assert client.diff(small, large)["rows"]
        assert client.certificate(small)["plan_id"] == small.id
        client.delete(small)
        with pytest.raises(NotFound, match="bitplan list"):
            client.plan(small.id)

    def test_plans_are_filtered_and_sorted(self, client: Any) -> None:
        metrics = ("kl_fisher", "hessian_trace")
        plans = [client.allocate("tiny", budget, metric=metric) for budget in ("20%", "40%") for metric in metrics]
        client.verify(plans[0])
        found = client.plans(metric="kl_fisher", sort="bytes").items
        assert [item.id for item in found] == [plans[0].id, plans[2].id]
        assert [item.id for item in client.plans(metric="kl_fisher", sort="-bytes").items] == [plans[2].id, plans[0].id]
        assert [item.id for item in client.plans(verified=True).items] == [plans[0].id]
        assert {item.id for item in client.plans(budget="40%").items} == {plans[2].id, plans[3].id}
        assert client.plans(target="vllm").items == []
        with pytest.raises(UsageError, match="sort"):
            client.plans(sort="beauty")

    def test_all_pages_are_read_one_after_another(self, idle: Any, store: Store) -> None:
        plan = fakes.plan("25%")
        ids = [f"{n:064x}" for n in range(203)]
        for name in ids:
            store.put_plan(plan.model_copy(update={"id": name}))
        assert [item.id for item in idle.all_plans()] == ids[::-1]
        assert [item.id for item in idle.all_plans(sort="bytes")] == [
            item.id for item in idle.all_plans(sort="bytes", model="tiny")
        ]
        assert list(idle.all_plans(target="vllm")) == []


class TestProfiles:
    def test_profiles_their_frontier_and_a_preview(self, client: Any) -> None:
        profile = client.profile("tiny", formats=["int4-g64", "int8-g64"])
        assert profile["formats"] == ["int4-g64", "int8-g64", "bf16"]
        assert client.profile("tiny", formats=["int4-g64", "int8-g64"]) == profile
        assert [item.id for item in client.profiles(model="tiny").items] == [profile["id"]]
        assert [item.id for item in client.all_profiles()] == [profile["id"]]
        points = client.frontier(profile["id"], target="vllm")
        assert points[0]["loss"] > points[-1]["loss"] == 0
        preview = client.preview(profile["id"], "30%")
        assert client.plans().items == []
        assert client.allocate("tiny", "30%", formats=["int4-g64", "int8-g64"]).id == preview.id

    def test_inspect_waits_for_what_was_never_looked_at(self, client: Any) -> None:
        assert client.inspect("tiny")["fingerprint"] == fakes.inventory().fingerprint
        assert len(client.jobs(kind="inspect").items) == 1
        client.inspect("tiny")
        assert len(client.jobs(kind="inspect").items) == 1


class TestJobs:
    def test_a_job_is_looked_at_and_called_off(self, idle: Any) -> None:
        job = idle.submit("tiny", "25%")
        assert idle.job(job.id) == job
        assert [item.id for item in idle.jobs(status="queued").items] == [job.id]
        assert [item.id for item in idle.all_jobs(kind="plan")] == [job.id]
        assert idle.jobs(kind="verify").items == []
        assert idle.cancel(job).status == "canceled"
        assert idle.wait(job).status == "canceled"

    def test_events_end_with_the_job(self, client: Any) -> None:
        job = client.wait(client.submit("tiny", "25%"))
        assert [event.status for event in client.events(job)] == ["succeeded"]
        assert list(client.events(job, after=job.version)) == []

    def test_a_canceled_job_raises_interrupted(self, idle: Any, store: Store) -> None:
        def cancel(job: JobView) -> None:
            store.jobs.cancel(job.id)

        with pytest.raises(Interrupted, match="kept"):
            idle.allocate("tiny", "25%", watch=cancel)


class TestErrors:
    def test_an_infeasible_budget_raises_the_same_from_the_service_and_from_a_job(self, client: Any) -> None:
        with pytest.raises(Infeasible) as from_job:
            client.allocate("tiny", "1%")
        with pytest.raises(Infeasible) as at_once:
            client.allocate("tiny", "1%")
        assert len(client.jobs().items) == 1
        assert at_once.value.minimum_bytes == from_job.value.minimum_bytes > 0
        assert at_once.value.maximum_bytes == fakes.inventory().native_bytes
        assert str(at_once.value) == str(from_job.value)

    def test_errors_are_those_of_the_allocator(self, client: Any) -> None:
        with pytest.raises(UnknownName, match="did you mean 'kl_fisher'"):
            client.allocate("tiny", "25%", metric="kl_fischer")
        with pytest.raises(ModelError, match="truncated"):
            client.allocate("broken", "25%")
        with pytest.raises(UsageError):
            client.allocate("tiny", "a lot")
        with pytest.raises(NotFound):
            client.job("job_none")

    def test_an_option_that_does_not_exist_is_refused_before_anything_is_sent(self, idle: Any) -> None:
        with pytest.raises(UsageError, match="tokns: Extra inputs"):
            idle.allocate("tiny", "25%", tokns=3)
        with pytest.raises(UsageError, match="tokens"):
            idle.profile("tiny", tokens=0)
        assert idle.jobs().items == []


class TestOthers:
    def test_exports_are_brought_whole(self, client: Any, tmp_path: Path) -> None:
        plan = client.allocate("tiny", "25%")
        assert client.exports(plan) == []
        seen: list[tuple[int, int]] = []
        folder = client.execute(plan, tmp_path / "model", received=lambda done, total: seen.append((done, total)))
        assert Plan.from_json((folder / "plan.json").read_text()).id == plan.id
        size = (folder / "plan.json").stat().st_size
        assert seen[-1] == (size, size)
        (ready,) = client.exports(plan)
        assert (ready.to, ready.bytes) == ("bitplan", size)
        client.export(plan, tmp_path / "again")
        assert len(client.jobs(kind="execute").items) == 1
        with pytest.raises(UnknownName, match="export"):
            client.export(plan, tmp_path / "other", to="guff")

    def test_what_can_be_asked_for(self, client: Any) -> None:
        client.allocate("tiny", "25%")
        assert "kl_fisher" in {item.name for item in client.metrics()}
        assert "best" in {item.name for item in client.solvers()}
        assert "int4-g64" in {item.name for item in client.formats()}
        assert "vllm" in {item.name for item in client.targets()}
        assert [(item.model, item.plans) for item in client.models()] == [("tiny", 1)]
        assert client.workers() == []

    def test_keys_are_made_used_and_revoked(self, idle: Any) -> None:
        key, secret = idle.create_key("ci", "plan", days=1)
        assert secret.startswith(key.prefix)
        (listed,) = idle.keys()
        assert (listed.id, listed.revoked) == (key.id, False)
        idle.revoke_key(key)
        (listed,) = idle.keys()
        assert listed.revoked

    def test_a_service_without_a_worker_is_not_ready(self, http: TestClient) -> None:
        with pytest.raises(BitplanError, match="worker"):
            Client(http=http, retries=0).health()


def test_a_lost_answer_is_asked_for_again_with_the_same_key(http: TestClient, settings: Settings) -> None:
    fakes.profile_model(ProfileRequest("tiny"), home=settings.home)
    keys: list[str] = []
    lost = iter([True, False])

    def forward(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["Idempotency-Key"])
        answer = http.request(request.method, request.url.path, content=request.content, headers=request.headers)
        if next(lost):
            raise httpx2.RemoteProtocolError("the connection broke")
        return httpx2.Response(answer.status_code, content=answer.content)

    with Client(http=httpx2.Client(transport=httpx2.MockTransport(forward), base_url="http://localhost")) as unlucky:
        plan = unlucky.allocate("tiny", "25%")
    assert keys[0] == keys[1]
    assert [item.id for item in Client(http=http).plans().items] == [plan.id]


def test_a_key_goes_with_every_request(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Settings.from_environment(settings.home, require_keys=True)
    with TestClient(create_app(strict)) as http:
        store: Store = http.app.state.store  # type: ignore[attr-defined]
        _, secret = store.keys.create("ci", "read")
        with pytest.raises(UsageError, match="send a key"):
            Client(http=http).plans()
        assert Client(http=http, api_key=secret).plans().items == []
        monkeypatch.setenv("BITPLAN_API_KEY", secret)
        assert Client(http=http).plans().items == []
        with pytest.raises(Forbidden, match="takes 'admin' to delete"):
            Client(http=http).delete("abc")


@pytest.mark.parametrize("address", ["ftp://host", "127.0.0.1:8000", "http://", "no address"])
def test_an_address_that_is_none_is_one_sentence(address: str) -> None:
    with pytest.raises(UsageError, match="no address of a service"):
        Client(address)
    with pytest.raises(UsageError, match="no address of a service"):
        AsyncClient(address)


def test_no_service_is_one_sentence_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPLAN_SERVER", "http://127.0.0.1:9")
    with Client(timeout=2, retries=1) as client, pytest.raises(BitplanError, match=r"127\.0\.0\.1:9.*bitplan serve"):
        client.plans()


def test_options_are_those_of_the_schema() -> None:
    profile, plan, sweep = (set(body.model_fields) for body in (ProfileBody, PlanBody, SweepBody))
    assert set(Measuring.__annotations__) == profile - {"model"}
    assert set(Planning.__annotations__) == plan - {"model", "budget"}
    assert set(Sweeping.__annotations__) == sweep - {"models", "budgets", "targets", "metrics"}


def test_both_clients_have_the_same_verbs_and_each_says_what_it_does() -> None:
    verbs = {name for name in dir(Client) if not name.startswith("_")}
    assert verbs == {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert len(verbs) > 30
    assert [name for name in verbs if not getattr(Client, name).__doc__] == ["close"]
    assert (bitplan.Client, bitplan.AsyncClient) == (Client, AsyncClient)
