"""What a browser gets from the service: the pages, and the guard at its door."""

from __future__ import annotations

import json

from fastapi.testclient import TestClient

import fakes
from bitplan.api.guard import BODY_BYTES
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from fakes import do_oldest_job

PLAN = {"model": "tiny", "budget": "25%"}


class TestPages:
    def test_the_dashboard_is_empty_at_first_and_then_lists_plans(
        self, http: TestClient, store: Store, settings: Settings, measured: str
    ) -> None:
        assert "bitplan plan smollm2-135m" in http.get("/").text
        plan = http.post("/v1/plans", json={**PLAN, "verify": True}).json()
        waiting = http.get("/").text
        assert 'http-equiv="refresh"' in waiting
        do_oldest_job(store, settings)
        page = http.get("/", params={"model": "tiny"}).text
        assert f'href="/plans/{plan["id"]}"' in page
        assert "passed" in page
        assert "Loss against size" in page
        assert 'http-equiv="refresh"' not in page

    def test_a_plans_page_shows_its_map(self, http: TestClient, measured: str) -> None:
        plan = http.post("/v1/plans", json=PLAN).json()
        page = http.get(f"/plans/{plan['id'][:12]}")
        assert page.headers["content-type"].startswith("text/html")
        assert "model.layers.0.self_attn.q_proj: " in page.text
        assert http.get("/plans/none").status_code == 404

    def test_pages_may_load_nothing(self, http: TestClient, measured: str) -> None:
        plan = http.post("/v1/plans", json=PLAN).json()
        for path in ("/", f"/plans/{plan['id']}"):
            page = http.get(path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "<script" not in page.text
            assert "style=" not in page.text
        assert "sha256-" in policy
        assert http.get("/v1/plans").headers["content-security-policy"].startswith("default-src 'none'")

    def test_names_are_escaped(self, http: TestClient, store: Store) -> None:
        plan = fakes.plan()
        store.put_plan(plan.model_copy(update={"model": plan.model.model_copy(update={"id": "<b>&\"'</b>"})}))
        for path in ("/", f"/plans/{plan.id}"):
            assert "<b>" not in http.get(path).text
            assert "&lt;b&gt;" in http.get(path).text


class TestGuard:
    def test_large_bodies_are_refused(self, http: TestClient) -> None:
        body = json.dumps({**PLAN, "model": "m" * BODY_BYTES}).encode()
        refused = http.post("/v1/plans", content=body, headers={"content-type": "application/json"})
        assert (refused.status_code, refused.json()["type"]) == (413, "/problems/body-too-large")
        pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
        refused = http.post("/v1/plans", content=pieces, headers={"content-type": "application/json"})
        assert (refused.status_code, refused.json()["type"]) == (413, "/problems/body-too-large")

    def test_pages_of_other_sites_may_not_write(self, http: TestClient) -> None:
        refused = http.post("/v1/plans", json=PLAN, headers={"Origin": "https://elsewhere.example"})
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/foreign-origin")
        assert http.post("/v1/plans", json=PLAN, headers={"Origin": "http://testserver"}).status_code == 202
        assert http.get("/v1/plans", headers={"Origin": "https://elsewhere.example"}).status_code == 200
