"""One shape for every error that leaves the service: problem details (RFC 9457).

    {"type": "/problems/...", "title": str, "status": int, "detail": str, ...}   application/problem+json

`status` is that of the response, `detail` is one sentence, and no class of errors is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import fakes
from bitplan.allocator import errors
from bitplan.allocator.errors import BitplanError, Infeasible, UnknownName, VerificationFailed
from bitplan.api.app import create_app
from bitplan.api.problems import OTHER_PROBLEMS, PROBLEMS, error_of, kind_of, other_problem, problem_of
from bitplan.api.settings import Settings


def tree(root: type[BitplanError] = BitplanError) -> Iterator[type[BitplanError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


CLASSES = sorted({cls for cls in tree() if cls.__module__ == errors.__name__}, key=lambda cls: cls.__name__)


def make(cls: type[BitplanError]) -> BitplanError:
    if cls is Infeasible:
        return Infeasible("too small; give more", 10, 20)
    if cls is UnknownName:
        return UnknownName("metric", "kl", ["kl_fisher"])
    if cls is VerificationFailed:
        return VerificationFailed("bytes differ", {"passed": False})
    return cls("a sentence")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_of_errors_has_its_own_problem(cls: type[BitplanError]) -> None:
    assert cls in PROBLEMS
    problem = problem_of(make(cls))
    assert problem["detail"] == str(make(cls))
    assert problem["type"] == "/problems/" + PROBLEMS[cls].slug
    assert 400 <= problem["status"] < 600


@pytest.mark.parametrize("cls", CLASSES)
def test_a_problem_reads_back_as_the_error_it_was(cls: type[BitplanError]) -> None:
    error = make(cls)
    back = error_of(problem_of(error))
    assert type(back) is cls
    assert str(back) == str(error)
    assert back.__dict__ == error.__dict__


def test_statuses_are_those_of_the_contract() -> None:
    named = {cls.__name__: (kind.status, kind.exit_status) for cls, kind in PROBLEMS.items()}
    assert named == {
        "BitplanError": (500, 1),
        "UsageError": (422, 2),
        "UnknownName": (422, 2),
        "ModelError": (422, 2),
        "Infeasible": (422, 3),
        "PlanMismatch": (409, 2),
        "VerificationFailed": (422, 4),
        "NotFound": (404, 2),
        "Forbidden": (403, 2),
        "StoreUnavailable": (503, 1),
        "DiskFull": (507, 1),
        "Interrupted": (409, 130),
    }


def test_no_two_problems_share_a_type() -> None:
    slugs = [kind.slug for kind in (*PROBLEMS.values(), *OTHER_PROBLEMS.values())]
    assert len(slugs) == len(set(slugs))


def test_a_class_made_later_counts_as_its_parent() -> None:
    class Narrower(errors.ModelError):
        pass

    assert kind_of(Narrower("x")) == PROBLEMS[errors.ModelError]


def test_problems_without_a_class_read_back_as_usage_or_as_the_root() -> None:
    assert type(error_of(other_problem("invalid-body", "no"))) is errors.UsageError
    assert type(error_of(other_problem("internal-error", "no"))) is BitplanError
    assert str(error_of({})) == "the service gave no reason"


@pytest.fixture
def http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    fakes.install(monkeypatch)
    with TestClient(create_app(Settings.from_environment(tmp_path)), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("PUT", "/v1/plans", {}, 405),
        ("GET", "/v1/plans/none", None, 404),
        ("GET", "/v1/plans?limit=0", None, 422),
        ("GET", "/v1/plans?cursor=x", None, 422),
        ("GET", "/v1/jobs/none", None, 404),
        ("GET", "/v1/profiles/none/frontier", None, 404),
        ("GET", "/v1/inventory", None, 422),
        ("GET", "/v1/inventory?model=broken", None, 422),
        ("POST", "/v1/plans", {}, 422),
        ("POST", "/v1/plans", [], 422),
        ("POST", "/v1/plans", {"model": "tiny", "budget": "much"}, 422),
        ("POST", "/v1/plans", {"model": "tiny", "budget": "1MiB", "pins": {"(": "bf16"}}, 422),
        ("POST", "/v1/profiles", {"model": "tiny", "metric": "none"}, 422),
        ("POST", "/v1/plans/none/verify", None, 404),
        ("GET", "/plans/none", None, 404),
        ("GET", "/readyz", None, 503),
    ],
)
def test_every_refusal_has_the_shape(http: TestClient, method: str, path: str, body: Any, status: int) -> None:
    response = http.request(method, path, json=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"].startswith("/problems/")
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]


def test_validation_points_into_the_body(http: TestClient) -> None:
    problem = http.post("/v1/plans", json={"model": "tiny", "tokens": 0, "pins": {"a/b": 3}, "buget": "1"}).json()
    assert problem["type"] == "/problems/invalid-body"
    pointers = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert set(pointers) == {"/budget", "/tokens", "/pins/a~1b", "/buget"}
    assert all(pointers.values())
    wrong = http.get("/v1/plans", params={"limit": 0}).json()
    assert [error["parameter"] for error in wrong["errors"]] == ["limit"]


def test_a_body_that_is_no_json_is_refused(http: TestClient) -> None:
    response = http.post("/v1/plans", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (422, "/problems/invalid-body")


def test_a_defect_tells_nothing_of_itself(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("bitplan.allocator.known_inventory", defect)
    response = http.post("/v1/plans", json={"model": "tiny", "budget": "1MiB"})
    assert (response.status_code, response.json()["type"]) == (500, "/problems/internal-error")
    assert "secret" not in response.text
    assert "ZeroDivisionError: secret" in caplog.text
