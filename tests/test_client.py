"""The client against the app in the same process, with a worker beside it: the verbs, waiting, and the errors raised."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.allocator.errors import BitplanError, Infeasible, Interrupted, ModelError, NotFound, UnknownName, UsageError
from bitplan.api.app import create_app
from bitplan.api.client import Client
from bitplan.api.jobs.worker import serve_jobs
from bitplan.api.schema import JobView
from bitplan.api.settings import Settings
from bitplan.api.store import Store


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    fakes.install(monkeypatch)
    monkeypatch.setattr("bitplan.api.client.client.FIRST_POLL_SECONDS", 0.01)
    return Settings.from_environment(tmp_path / "home")


@pytest.fixture
def http(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        yield http


@pytest.fixture
def idle(http: TestClient) -> Client:
    """A client of a service without a worker."""
    return Client(http=http)


@pytest.fixture
def client(idle: Client, http: TestClient, settings: Settings) -> Iterator[Client]:
    """A client of a service with a worker, here a thread."""
    store: Store = http.app.state.store  # type: ignore[attr-defined]
    stop = threading.Event()
    worker = threading.Thread(target=serve_jobs, args=(store, settings.home, stop))
    worker.start()
    yield idle
    stop.set()
    worker.join(5)


def test_allocate_waits_for_the_job_and_returns_the_plan(client: Client) -> None:
    seen: list[JobView] = []
    plan = client.allocate("tiny", "25%", pins={r".*v_proj": "bf16"}, watch=seen.append)
    assert isinstance(plan, Plan)
    assert plan.assignment["model.layers.0.self_attn.v_proj"] == "bf16"
    assert seen[-1].status == "succeeded"
    assert [job.version for job in seen] == sorted({job.version for job in seen})
    seen.clear()
    assert client.allocate("tiny", "25%", pins={r".*v_proj": "bf16"}, watch=seen.append) == plan
    assert seen == []


def test_allocate_may_return_the_job_instead(idle: Client) -> None:
    job = idle.allocate("tiny", "25%", wait=False)
    assert isinstance(job, JobView)
    assert idle.job(job.id) == job
    assert [item.id for item in idle.jobs(status="queued").items] == [job.id]
    assert idle.cancel(job).status == "canceled"
    assert idle.wait(job).status == "canceled"


def test_allocate_can_have_the_plan_verified(client: Client) -> None:
    client.profile("tiny")
    plan = client.allocate("tiny", "25%", verify=True)
    assert plan.evidence is not None
    assert plan.evidence["passed"]
    other = client.allocate("experts", "25%", verify=True)
    assert other.evidence is not None


def test_verify_returns_the_report_whether_the_promise_was_kept_or_not(client: Client) -> None:
    kept, broken = (client.verify(client.allocate(model, "25%")) for model in ("tiny", "liar"))
    assert (kept["passed"], broken["passed"]) == (True, False)
    assert kept["loss"]["measured"] > 0


def test_profiles_and_their_frontier(client: Client) -> None:
    profile = client.profile("tiny", formats=["int4-g64", "int8-g64"])
    assert profile["formats"] == ["int4-g64", "int8-g64", "bf16"]
    assert client.profile("tiny", formats=["int4-g64", "int8-g64"]) == profile
    assert [item.id for item in client.profiles(model="tiny").items] == [profile["id"]]
    points = client.frontier(profile["id"], target="vllm")
    assert points[0]["loss"] > points[-1]["loss"] == 0


def test_stored_plans_are_listed_read_compared_and_deleted(client: Client) -> None:
    small, large = client.allocate("tiny", "20%"), client.allocate("tiny", "40%")
    assert [item.id for item in client.plans(model="tiny").items] == [large.id, small.id]
    first = client.plans(limit=1)
    assert [item.id for item in client.plans(cursor=first.next_cursor).items] == [small.id]
    assert client.plan(small.id[:10]) == small
    assert client.diff(small, large)["rows"]
    client.delete(small)
    with pytest.raises(NotFound, match="bitplan list"):
        client.plan(small.id)


def test_an_infeasible_budget_raises_the_same_from_the_service_and_from_a_job(client: Client) -> None:
    with pytest.raises(Infeasible) as from_job:
        client.allocate("tiny", "1%")
    with pytest.raises(Infeasible) as at_once:
        client.allocate("tiny", "1%")
    assert len(client.jobs().items) == 1
    assert at_once.value.minimum_bytes == from_job.value.minimum_bytes > 0
    assert at_once.value.maximum_bytes == fakes.inventory().native_bytes
    assert str(at_once.value) == str(from_job.value)


def test_errors_are_those_of_the_allocator(client: Client) -> None:
    with pytest.raises(UnknownName, match="did you mean 'kl_fisher'"):
        client.allocate("tiny", "25%", metric="kl_fischer")
    with pytest.raises(ModelError, match="truncated"):
        client.allocate("broken", "25%")
    with pytest.raises(UsageError):
        client.allocate("tiny", "a lot")
    with pytest.raises(NotFound):
        client.job("job_none")


def test_a_canceled_job_raises_interrupted(idle: Client) -> None:
    job = idle.allocate("tiny", "25%", wait=False)
    assert isinstance(job, JobView)

    def cancel(_: JobView) -> None:
        idle.cancel(job)

    with pytest.raises(Interrupted, match="kept"):
        idle.allocate("tiny", "25%", watch=cancel)


def test_a_lost_answer_is_asked_for_again_with_the_same_key(idle: Client, http: TestClient, settings: Settings) -> None:
    fakes.profile_model(ProfileRequest("tiny"), home=settings.home)
    keys: list[str] = []
    lost = iter([True, False])

    def forward(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["Idempotency-Key"])
        answer = http.request(request.method, request.url.path, content=request.content, headers=request.headers)
        if next(lost):
            raise httpx2.RemoteProtocolError("the connection broke")
        return httpx2.Response(answer.status_code, content=answer.content)

    with Client(http=httpx2.Client(transport=httpx2.MockTransport(forward), base_url="http://service")) as unlucky:
        plan = unlucky.allocate("tiny", "25%")
    assert keys[0] == keys[1]
    assert [item.id for item in idle.plans().items] == [plan.id]


def test_no_service_is_one_sentence_with_the_remedy() -> None:
    with Client("http://127.0.0.1:9", timeout=2) as client, pytest.raises(BitplanError, match="bitplan serve"):
        client.plans()


def test_an_answer_that_is_no_problem_document_is_still_an_error() -> None:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(502, text="<html>bad gateway</html>"))
    http = httpx2.Client(transport=transport, base_url="http://proxy")
    with Client(http=http) as client, pytest.raises(BitplanError, match="status 502"):
        client.plans()
