"""Idempotency-Key: a request that is sent again is answered again, and its work is done once."""

from __future__ import annotations

from fastapi.testclient import TestClient

import fakes
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from bitplan.api.store.replies import ANSWER_SECONDS
from bitplan.api.store.tables import ReplyRow, timestamp
from fakes import do_oldest_job

PLAN = {"model": "tiny", "budget": "25%"}


def test_the_same_key_and_body_get_the_first_reply(http: TestClient, measured: str) -> None:
    first = http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"})
    again = http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert again.headers["location"] == first.headers["location"]
    assert http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "other"}).status_code == 200


def test_a_finished_jobs_reply_is_replayed_without_a_new_job(http: TestClient, store: Store, settings: Settings) -> None:
    first = http.post("/v1/profiles", json={"model": "tiny"}, headers={"Idempotency-Key": "k"})
    do_oldest_job(store, settings)
    again = http.post("/v1/profiles", json={"model": "tiny"}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (202, first.json())
    assert len(http.get("/v1/jobs").json()["items"]) == 1


def test_the_same_key_with_another_body_is_refused(http: TestClient, measured: str) -> None:
    http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"})
    refused = http.post("/v1/plans", json={**PLAN, "budget": "30%"}, headers={"Idempotency-Key": "k"})
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/idempotency-conflict")


def test_the_same_key_is_another_on_another_route(http: TestClient, measured: str) -> None:
    assert http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"}).status_code == 201
    assert http.post("/v1/profiles", json={"model": "tiny"}, headers={"Idempotency-Key": "k"}).status_code == 200


def test_a_failure_is_not_replayed(http: TestClient, settings: Settings) -> None:
    fakes.inspect_model("tiny", home=settings.home)
    body = {**PLAN, "budget": "1%"}
    assert http.post("/v1/plans", json=body, headers={"Idempotency-Key": "k"}).status_code == 422
    assert http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"}).status_code == 202


def test_a_request_still_being_answered_is_not_begun_again_until_it_must_have_died(
    http: TestClient, store: Store, measured: str
) -> None:
    http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"})
    with store.database.write() as session:
        row = session.get(ReplyRow, ("k", "plans", "local"))
        assert row is not None
        row.status = None
    waiting = http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"})
    assert (waiting.status_code, waiting.json()["type"]) == (409, "/problems/idempotency-in-flight")
    with store.database.write() as session:
        row = session.get(ReplyRow, ("k", "plans", "local"))
        assert row is not None
        row.created_at = timestamp(ANSWER_SECONDS + 1)
    assert http.post("/v1/plans", json=PLAN, headers={"Idempotency-Key": "k"}).status_code == 200
