"""The service, route by route, with models that need no measuring. Jobs are done in the test where one is needed."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text, update

import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.api.jobs.presence import Presence
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from bitplan.api.store.tables import JobRow
from fakes import do_oldest_job

PLAN = {"model": "tiny", "budget": "25%"}


class TestPlans:
    def test_a_known_profile_gives_a_plan_at_once_and_the_same_plan_again(self, http: TestClient, measured: str) -> None:
        first = http.post("/v1/plans", json=PLAN)
        assert first.status_code == 201
        plan = Plan.model_validate(first.json())
        assert first.headers["location"] == f"/v1/plans/{plan.id}"
        assert plan.provenance.profile_id == measured
        assert plan.predicted.bytes.total <= plan.budget.limit_bytes
        second = http.post("/v1/plans", json=PLAN)
        assert (second.status_code, second.json()) == (200, first.json())
        assert len(http.get("/v1/plans").json()["items"]) == 1
        assert http.get("/v1/jobs").json()["items"] == []

    def test_an_unknown_model_becomes_a_job_whose_end_is_the_plan(
        self, http: TestClient, store: Store, settings: Settings
    ) -> None:
        asked = http.post("/v1/plans", json=PLAN)
        assert asked.status_code == 202
        assert asked.headers["retry-after"] == "1"
        location = asked.headers["location"]
        assert http.get(location).json() == asked.json()
        assert http.post("/v1/plans", json=PLAN).headers["location"] == location
        done = do_oldest_job(store, settings)
        assert http.get(location).json() == done.model_dump()
        assert done.result is not None
        plan = http.get(done.result["href"]).json()
        assert http.post("/v1/plans", json=PLAN).json() == plan

    def test_verify_asks_for_a_job_when_the_plan_was_never_measured(
        self, http: TestClient, store: Store, settings: Settings, measured: str
    ) -> None:
        asked = http.post("/v1/plans", json={**PLAN, "verify": True})
        assert asked.status_code == 201
        job = do_oldest_job(store, settings)
        assert asked.headers["link"] == f'</v1/jobs/{job.id}>; rel="related"'
        again = http.post("/v1/plans", json={**PLAN, "verify": True})
        assert again.json()["evidence"]["passed"] is True
        assert "link" not in again.headers

    def test_a_hopeless_budget_is_refused_before_anything_is_measured(
        self, http: TestClient, store: Store, settings: Settings
    ) -> None:
        fakes.inspect_model("tiny", home=settings.home)
        refused = http.post("/v1/plans", json={**PLAN, "budget": "1%"})
        problem = refused.json()
        assert refused.status_code == 422
        assert problem["type"] == "/problems/budget-infeasible"
        assert problem["minimum_bytes"] < problem["maximum_bytes"] == fakes.inventory().native_bytes
        assert http.post("/v1/plans", json={**PLAN, "budget": str(problem["minimum_bytes"])}).status_code == 202
        assert http.post("/v1/plans", json={**PLAN, "budget": str(problem["minimum_bytes"] - 1)}).status_code == 422

    def test_the_untouched_model_needs_no_profile(self, http: TestClient, settings: Settings) -> None:
        fakes.inspect_model("tiny", home=settings.home)
        answer = http.post("/v1/plans", json={**PLAN, "budget": "1GiB"})
        assert answer.status_code == 201
        assert answer.json()["notes"]
        assert set(answer.json()["assignment"].values()) == {"bf16"}

    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            ({"metric": "guess"}, "metric"),
            ({"target": "gpu"}, "target"),
            ({"solver": "x"}, "solver"),
            ({"formats": ["int9"]}, "format"),
        ],
    )
    def test_unknown_names_are_refused_though_the_model_is_unknown(
        self, http: TestClient, change: dict[str, Any], kind: str
    ) -> None:
        problem = http.post("/v1/plans", json=PLAN | change).json()
        assert (problem["type"], problem["status"], problem["kind"]) == ("/problems/unknown-name", 422, kind)
        assert http.get("/v1/jobs").json()["items"] == []

    def test_a_calibration_file_outside_the_roots_is_refused(
        self, http: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = tmp_path / "inside" / "text.txt"
        text.parent.mkdir()
        text.write_text("some words")
        secret = tmp_path / "secret.txt"
        secret.write_text("other words")
        (text.parent / "link.txt").symlink_to(secret)
        monkeypatch.setenv("BITPLAN_MODEL_ROOTS", str(text.parent))
        for path, status in (
            (text, 202),
            (secret, 422),
            (text.parent / ".." / "secret.txt", 422),
            (text.parent / "link.txt", 422),
        ):
            asked = {**PLAN, "model": "someone/tiny", "calibration": str(path)}
            assert http.post("/v1/plans", json=asked).status_code == status

    def test_a_plan_is_found_by_prefix_and_cached_by_its_tag(self, http: TestClient, measured: str) -> None:
        plan = http.post("/v1/plans", json=PLAN).json()
        answer = http.get(f"/v1/plans/{plan['id'][:10]}")
        assert answer.json() == plan
        tag = answer.headers["etag"]
        assert tag.startswith('"')
        again = http.get(f"/v1/plans/{plan['id']}", headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)

    def test_evidence_changes_the_tag(self, http: TestClient, store: Store, settings: Settings, measured: str) -> None:
        plan = http.post("/v1/plans", json=PLAN).json()
        tag = http.get(f"/v1/plans/{plan['id']}").headers["etag"]
        asked = http.post(f"/v1/plans/{plan['id'][:12]}/verify")
        assert (asked.status_code, asked.headers["location"]) == (202, f"/v1/jobs/{do_oldest_job(store, settings).id}")
        answer = http.get(f"/v1/plans/{plan['id']}", headers={"If-None-Match": tag})
        assert answer.status_code == 200
        assert answer.json()["evidence"]["plan_id"] == plan["id"]

    def test_lists_come_in_pages_with_links(self, http: TestClient, measured: str) -> None:
        ids = [http.post("/v1/plans", json={**PLAN, "budget": f"{share}%"}).json()["id"] for share in (20, 22, 24)]
        page = http.get("/v1/plans", params={"limit": 2, "model": "tiny"})
        assert [item["id"] for item in page.json()["items"]] == [ids[2], ids[1]]
        rest = http.get(page.links["next"]["url"])
        assert [item["id"] for item in rest.json()["items"]] == [ids[0]]
        assert rest.json()["next_cursor"] is None
        assert "next" not in rest.links
        assert http.get("/v1/plans", params={"target": "vllm"}).json()["items"] == []

    def test_delete_forgets_a_plan(self, http: TestClient, measured: str) -> None:
        plan = http.post("/v1/plans", json=PLAN).json()
        assert http.delete(f"/v1/plans/{plan['id']}").status_code == 204
        assert http.get(f"/v1/plans/{plan['id']}").status_code == 404
        assert http.delete(f"/v1/plans/{plan['id']}").status_code == 404
        assert http.post("/v1/plans", json=PLAN).status_code == 201

    def test_the_certificate_proves_the_plan(self, http: TestClient, measured: str) -> None:
        plan = http.post("/v1/plans", json=PLAN).json()
        proof = http.get(f"/v1/plans/{plan['id']}/certificate").json()
        chosen = list(zip(proof["loss"], proof["cost"], proof["choice"], strict=True))
        assert sum(cost[j] for _, cost, j in chosen) <= proof["limit"]
        lost = sum(loss[j] for loss, _, j in chosen)
        assert lost / proof["loss_scale"] == pytest.approx(plan["predicted"]["loss"], rel=1e-9)
        numerator, denominator = proof["multiplier_numerator"], proof["multiplier_denominator"]
        bound = sum(
            min(denominator * value + numerator * cost[j] for j, value in enumerate(loss) if value is not None)
            for loss, cost, _ in chosen
        )
        bound -= numerator * proof["limit"]
        assert bound <= denominator * lost
        assert bound / denominator / proof["loss_scale"] == pytest.approx(proof["lower_bound"], rel=1e-9)

    def test_two_plans_are_compared(self, http: TestClient, measured: str) -> None:
        small, large = (http.post("/v1/plans", json={**PLAN, "budget": budget}).json() for budget in ("20%", "40%"))
        difference = http.get(f"/v1/plans/{small['id']}/diff/{large['id']}").json()
        change = sum(row["b"]["bytes"] - row["a"]["bytes"] for row in difference["rows"])
        assert change == large["predicted"]["bytes"]["total"] - small["predicted"]["bytes"]["total"] > 0
        differing = {unit for unit, name in small["assignment"].items() if large["assignment"][unit] != name}
        assert {unit for row in difference["rows"] for unit in row["units"]} == differing

    def test_plans_of_two_models_are_not_compared(self, http: TestClient, settings: Settings, measured: str) -> None:
        fakes.profile_model(ProfileRequest("experts"), home=settings.home)
        a, b = (http.post("/v1/plans", json={**PLAN, "model": model}).json()["id"] for model in ("tiny", "experts"))
        problem = http.get(f"/v1/plans/{a}/diff/{b}").json()
        assert (problem["status"], problem["type"]) == (409, "/problems/plan-mismatch")


class TestProfiles:
    def test_a_profile_is_measured_once(self, http: TestClient, store: Store, settings: Settings) -> None:
        asked = http.post("/v1/profiles", json={"model": "tiny"})
        assert asked.status_code == 202
        done = do_oldest_job(store, settings)
        assert done.result is not None
        profile = http.get(done.result["href"]).json()
        assert profile == {"model": "tiny", **fakes.report(ProfileRequest("tiny")).to_json()}
        known = http.post("/v1/profiles", json={"model": "tiny"})
        assert (known.status_code, known.json()) == (200, profile)
        assert [item["id"] for item in http.get("/v1/profiles", params={"model": "tiny"}).json()["items"]] == [profile["id"]]

    def test_its_frontier_falls_and_ends_at_the_untouched_model(self, http: TestClient, measured: str) -> None:
        http.post("/v1/profiles", json={"model": "tiny"})
        answer = http.get(f"/v1/profiles/{measured[:12]}/frontier").json()
        points = answer["points"]
        assert (answer["profile_id"], answer["target"], answer["quantity"]) == (measured, "native", fakes.QUANTITY)
        assert len(points) > 10
        assert points[-1]["bytes"] == fakes.inventory().native_bytes
        assert points[-1]["loss"] == 0
        assert all(a["bytes"] < b["bytes"] and a["loss"] > b["loss"] for a, b in pairwise(points))
        tied = http.get(f"/v1/profiles/{measured}/frontier", params={"target": "vllm"}).json()["points"]
        assert len(tied) < len(points)
        unknown = http.get(f"/v1/profiles/{measured}/frontier", params={"target": "x"})
        assert unknown.json()["type"] == "/problems/unknown-name"


class TestJobs:
    def test_events_tell_a_job_to_its_end(self, http: TestClient, store: Store, settings: Settings) -> None:
        location = http.post("/v1/plans", json=PLAN).headers["location"]
        timer = threading.Timer(0.4, do_oldest_job, (store, settings))
        timer.start()
        answer = http.get(f"{location}/events")
        timer.join()
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = parse_events(answer.text)
        assert events[0]["event"] == "state"
        assert events[-1]["event"] == "result"
        assert events[-1]["data"] == http.get(location).json()
        ids = [int(event["id"]) for event in events]
        assert ids == sorted(set(ids))

    def test_events_go_on_after_the_last_one_seen(self, http: TestClient, store: Store, settings: Settings) -> None:
        location = http.post("/v1/plans", json={**PLAN, "budget": "1%"}).headers["location"]
        version = do_oldest_job(store, settings).version
        assert [event["event"] for event in parse_events(http.get(f"{location}/events").text)] == ["error"]
        seen = http.get(f"{location}/events", headers={"Last-Event-ID": str(version)})
        assert parse_events(seen.text) == []
        assert http.get("/v1/jobs/job_none/events").status_code == 404

    def test_a_job_is_canceled_once_and_an_ended_one_cannot_be(self, http: TestClient, store: Store, settings: Settings) -> None:
        first = http.post("/v1/plans", json=PLAN).headers["location"]
        canceled = http.post(f"{first}/cancel")
        assert (canceled.status_code, canceled.json()["status"]) == (202, "canceled")
        assert http.post(f"{first}/cancel").status_code == 202
        second = http.post("/v1/plans", json=PLAN).headers["location"]
        assert second != first
        do_oldest_job(store, settings)
        refused = http.post(f"{second}/cancel")
        assert (refused.status_code, refused.json()["type"]) == (409, "/problems/job-not-cancelable")

    def test_lists_are_filtered_by_status(self, http: TestClient, store: Store, settings: Settings) -> None:
        http.post("/v1/plans", json=PLAN)
        assert do_oldest_job(store, settings).status == "succeeded"
        http.post("/v1/profiles", json={"model": "experts"})
        kinds = {
            status: [j["kind"] for j in http.get("/v1/jobs", params={"status": status}).json()["items"]]
            for status in ("queued", "succeeded")
        }
        assert kinds == {"queued": ["profile"], "succeeded": ["plan"]}
        assert http.get("/v1/jobs", params={"status": "lost"}).status_code == 422


class TestCatalog:
    def test_an_inventory_is_read_once(self, http: TestClient, store: Store, settings: Settings) -> None:
        asked = http.get("/v1/inventory", params={"model": "tiny"})
        assert asked.status_code == 202
        do_oldest_job(store, settings)
        known = http.get("/v1/inventory", params={"model": "tiny"})
        assert known.status_code == 200
        assert known.json()["fingerprint"] == fakes.inventory().fingerprint

    @pytest.mark.parametrize(
        ("what", "name"), [("metrics", "kl_fisher"), ("solvers", "best"), ("formats", "int4-g64"), ("targets", "vllm")]
    )
    def test_names_come_with_a_line_of_explanation(self, http: TestClient, what: str, name: str) -> None:
        items = {item["name"]: item for item in http.get(f"/v1/{what}").json()["items"]}
        assert name in items
        assert all(len(item["summary"]) > 5 and "\n" not in item["summary"] for item in items.values())

    def test_formats_tell_their_stored_bits(self, http: TestClient) -> None:
        items = {item["name"]: item for item in http.get("/v1/formats").json()["items"]}
        assert items["int4-g64"]["bits_per_weight"] == 4 + 16 / 64
        assert items["bf16"]["bits_per_weight"] == 16

    def test_the_schema_of_a_plan_is_published(self, http: TestClient) -> None:
        schema = http.get("/v1/schemas/plan").json()
        assert set(fakes.plan().model_dump()) == set(schema["properties"])

    def test_openapi_describes_every_route(self, http: TestClient) -> None:
        document = http.get("/openapi.json").json()
        operations = [operation for path in document["paths"].values() for operation in path.values()]
        ids = [operation["operationId"] for operation in operations]
        assert len(set(ids)) == len(ids) > 20
        assert all(operation.get("description") for operation in operations)
        assert "202" in document["paths"]["/v1/plans"]["post"]["responses"]


class TestHealth:
    def test_ready_means_that_a_worker_lives(self, http: TestClient, store: Store) -> None:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").status_code == 503
        assert http.get("/readyz").json()["type"] == "/problems/not-ready"
        presence = Presence(store)
        presence.beat()
        assert http.get("/readyz").json() == {"status": "ready"}
        store.workers.beat(presence.view.model_copy(update={"version": "0.0.1"}))
        sentence = http.get("/readyz").json()["failures"]["workers"]
        assert sentence.startswith("all workers are of another version (0.0.1, not ")
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        store.workers.beat(presence.view.model_copy(update={"pid": gone.pid}))
        assert "no worker is alive" in http.get("/readyz").json()["failures"]["workers"]

    def test_a_schema_that_another_version_changed_is_told(self, http: TestClient, store: Store) -> None:
        with store.database.write() as session:
            session.execute(text("UPDATE marks SET value = '99' WHERE name = 'schema'"))
        assert "another version of bitplan has changed the store" in http.get("/readyz").json()["failures"]["schema"]

    def test_the_version_is_told(self, http: TestClient) -> None:
        assert http.get("/version").json()["bitplan"] == importlib.metadata.version("bitplan")

    def test_numbers_for_monitoring(self, http: TestClient, store: Store, measured: str) -> None:
        Presence(store).beat()
        assert http.post("/v1/plans", json=PLAN).status_code == 201
        job = http.post("/v1/plans", json={**PLAN, "model": "experts"}).json()
        numbers = numbers_of(http)
        assert numbers['jobs_queued{kind="plan"}'] == 1
        assert numbers['jobs_open{kind="plan",status="queued"}'] == 1
        assert numbers["plan_solve_seconds_count"] == 1
        assert numbers["solver_gap_ratio_count"] == 1
        assert numbers["store_up"] == 1
        assert numbers['worker_heartbeat_age_seconds{place="0"}'] < 30
        store.jobs.cancel(job["id"])
        http.get(f"/v1/jobs/{job['id']}")
        http.get("/v1/plans/none-of-that-id")
        numbers = numbers_of(http)
        assert numbers['jobs_total{kind="plan",status="canceled"}'] == 1
        assert numbers[DURATION % ("POST", "/v1/plans", 201)] == 1
        assert numbers[DURATION % ("GET", "/v1/plans/{plan_id}", 404)] == 1
        assert not any(job["id"] in name for name in numbers)

    def test_waits_and_durations_are_those_of_the_jobs(self, http: TestClient, store: Store) -> None:
        for finished in ("2026-01-01T00:00:30.000Z", None):
            job = store.jobs.submit("inspect", {"model": str(finished)}, "local", None)
            with store.database.write() as session:
                times = {
                    "created_at": "2026-01-01T00:00:00.000Z",
                    "started_at": "2026-01-01T00:00:10.000Z",
                    "finished_at": finished,
                }
                session.execute(update(JobRow).where(JobRow.id == job.id).values(**times))
        numbers = numbers_of(http)
        assert numbers['job_queue_wait_seconds_sum{kind="inspect"}'] == 20
        assert numbers['job_queue_wait_seconds_count{kind="inspect"}'] == 2
        assert numbers['job_duration_seconds_sum{kind="inspect"}'] == 20
        assert numbers['job_duration_seconds_count{kind="inspect"}'] == 1

    def test_what_nobody_foresaw_is_logged_and_answered(
        self, http: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(store.workers, "list", lambda: 1 / 0)
        answer = http.get("/v1/workers")
        assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal-error")
        assert len(answer.headers["x-request-id"]) == 32
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "ZeroDivisionError" in caplog.text


DURATION = 'http_server_request_duration_seconds_count{method="%s",route="%s",status="%s"}'


def numbers_of(http: TestClient) -> dict[str, float]:
    """What /metrics says, by name and labels."""
    lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_the_service_never_loads_torch(tmp_path: Path) -> None:
    """Plans, profiles, jobs, pages and every list, in a process that is asked at the end what it has imported."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import fakes
from fastapi.testclient import TestClient
from bitplan.allocator import ProfileRequest
from bitplan.api.app import create_app
from bitplan.api.settings import Settings
fakes.install()
settings = Settings.from_environment({str(tmp_path)!r})
fakes.profile_model(ProfileRequest("tiny"), home=settings.home)
with TestClient(create_app(settings)) as http:
    plan = http.post("/v1/plans", json={PLAN!r})
    assert plan.status_code == 201, plan.text
    assert http.post("/v1/plans", json={{"model": "experts", "budget": "25%", "verify": True}}).status_code == 202
    profile = plan.json()["provenance"]["profile_id"]
    for path in ("/", "/plans/" + plan.json()["id"], "/v1/plans", "/v1/jobs", "/v1/profiles/" + profile + "/frontier",
                 "/v1/metrics", "/v1/solvers", "/v1/formats", "/v1/targets", "/v1/schemas/plan", "/openapi.json", "/metrics"):
        assert http.get(path).status_code == 200, path
heavy = [name for name in ("torch", "transformers", "accelerate", "triton") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def parse_events(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if line and not line.startswith(":")]
        if lines:
            event: dict[str, Any] = {name: value for name, _, value in lines}
            events.append({**event, "data": json.loads(event["data"])})
    return events
