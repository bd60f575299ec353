"""The service while its database is away: every answer says so, and all is well again by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import fakes
import postgres
from bitplan.allocator import ProfileRequest
from bitplan.api.app import create_app
from bitplan.api.settings import Settings

PLAN = {"model": "tiny", "budget": "25%"}


@pytest.fixture
def line(tmp_path: Path) -> Iterator[postgres.Line]:
    with postgres.fresh_database(postgres.store_template()) as url, postgres.Line(url) as line:
        yield line


def test_requests_are_answered_while_postgresql_is_gone_and_done_when_it_is_back(
    line: postgres.Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch)
    settings = Settings.from_environment(tmp_path, line.url)
    fakes.profile_model(ProfileRequest("tiny"), home=settings.home)
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        secret = http.app.state.store.keys.create("me", "admin")[1]  # type: ignore[attr-defined]
        assert http.post("/v1/plans", json=PLAN).status_code == 201
        for _ in range(2):
            line.cut()
            for method, path, body in (
                ("GET", "/v1/plans", None),
                ("GET", "/v1/jobs/none", None),
                ("POST", "/v1/plans", {**PLAN, "budget": "30%"}),
                ("POST", "/v1/sweeps", {"models": ["tiny"], "budgets": ["25%"]}),
                ("GET", "/v1/keys", None),
                ("POST", "/session", {"key": secret}),
            ):
                answer = http.request(method, path, json=body)
                assert (answer.status_code, answer.json()["type"]) == (503, "/problems/store-unavailable"), path
                assert int(answer.headers["retry-after"]) > 0
                assert "127.0.0.1" not in answer.text  # where the database is
            assert http.get("/v1/plans", headers={"Authorization": f"Bearer {secret}"}).status_code == 503
            assert http.get("/readyz").json()["failures"].keys() == {"store"}
            assert "store_up 0.0\n" in http.get("/metrics").text
            assert http.get("/healthz").status_code == 200
            line.mend()
            assert http.get("/v1/plans").status_code == 200
            assert http.get("/v1/plans", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
            assert "store_up 1.0\n" in http.get("/metrics").text
        assert http.post("/v1/plans", json={**PLAN, "budget": "30%"}).status_code == 201
