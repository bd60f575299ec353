"""The description of the service: complete, and the one that is committed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bitplan.api.app import create_app
from bitplan.api.auth import COOKIE
from bitplan.api.gate import is_open
from bitplan.api.problems import MEDIA_TYPE, OTHER_PROBLEMS, PREFIX, PROBLEMS
from bitplan.api.settings import Settings

COMMITTED = Path(__file__).parent.parent / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings.from_environment(tmp_path_factory.mktemp("openapi")))
    app.state.store.close()
    document: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return document


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_the_committed_description_is_this_one(described: dict[str, Any]) -> None:
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == described, "it has changed; run: scripts/openapi"


def test_every_operation_has_a_name_of_its_own_a_tag_and_words(described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(names)) == len(names) > 35
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    tags = {tag["name"] for tag in described["tags"]}
    for path, method, operation in operations(described):
        assert set(operation["tags"]) <= tags, (path, method)
        assert 3 < len(operation["summary"]) < 120, (path, method, operation["summary"])
        assert operation["description"], (path, method)


def test_refusals_are_problems_and_all_named(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        responses = operation["responses"]
        for status, response in responses.items():
            assert "X-Request-ID" in response["headers"]
            if int(status) >= 400:
                assert list(response["content"]) == [MEDIA_TYPE], (path, method, status)
        needed = {"400", "403"}
        if not is_open(path):
            needed |= {"401", "429"}
            assert operation["security"] == [{"key": []}, {"session": []}, {}]
        if "{" in path:
            needed.add("404")
        if "requestBody" in operation:
            needed |= {"408", "413", "422"}
        assert needed <= set(responses), (path, method)
    assert "HTTPValidationError" not in described["components"]["schemas"]
    assert described["components"]["securitySchemes"]["session"]["name"] == COOKIE


def test_jobs_are_linked_to_where_they_can_be_followed(described: dict[str, Any]) -> None:
    answered = described["paths"]["/v1/plans"]["post"]["responses"]["202"]
    assert {"Location", "Retry-After"} <= set(answered["headers"])
    names = {operation["operationId"] for _, _, operation in operations(described)}
    assert {link["operationId"] for link in answered["links"].values()} <= names
    assert len(answered["links"]) == 3


def test_every_post_that_starts_work_takes_an_idempotency_key(described: dict[str, Any]) -> None:
    for path, method, operation in operations(described):
        if method == "post" and "202" in operation["responses"] and not path.endswith("/cancel"):
            assert "Idempotency-Key" in {parameter["name"] for parameter in operation["parameters"]}, path
            assert "409" in operation["responses"]


def test_types_of_problems_are_spelt_as_addresses() -> None:
    slugs = [kind.slug for kind in PROBLEMS.values()] + list(OTHER_PROBLEMS)
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs)
    assert PREFIX == "/problems/"


def test_a_type_of_problem_is_an_address(http: TestClient) -> None:
    for named in http.get("/v1/problems").json()["items"]:
        assert http.get(named["name"]).json() == named
    assert http.get("/problems/none").status_code == 404
