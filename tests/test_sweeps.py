"""Sweeps, over HTTP and through both clients: one job, many plans, the same sweep for the same request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import fakes
from bitplan.allocator.errors import BitplanError, Interrupted, UsageError
from bitplan.api.client import Client, Sweep
from bitplan.api.schema import JobView, SweepBody
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from hands import do, hands

BODY: dict[str, Any] = {"models": ["tiny", "experts"], "budgets": ["20%", "1%", "40%"], "metrics": ["kl_fisher", "weight_error"]}


class TestRoutes:
    def test_a_sweep_is_a_job_whose_cells_fill(self, http: TestClient, store: Store, settings: Settings) -> None:
        asked = http.post("/v1/sweeps", json=BODY)
        assert asked.status_code == 202
        view = asked.json()
        where = [(cell["model"], cell["metric"], cell["target"], cell["budget"]) for cell in view["cells"]]
        assert where == [
            (model, metric, "native", budget)
            for model in BODY["models"]
            for metric in BODY["metrics"]
            for budget in BODY["budgets"]
        ]
        assert {cell["status"] for cell in view["cells"]} == {"queued"}
        assert asked.headers["location"] == f"/v1/sweeps/{view['id']}"
        assert http.get(view["links"]["self"]).json() == view
        do(store.jobs.get(view["job_id"]), store, settings)
        ended = http.get(view["links"]["self"])
        assert "retry-after" not in ended.headers
        assert ended.json()["status"] == "succeeded"
        for cell in ended.json()["cells"]:
            if cell["budget"] == "1%":
                assert (cell["status"], cell["plan"], cell["error"]["type"]) == ("failed", None, "/problems/budget-infeasible")
            else:
                plan = store.plan(cell["plan"]["id"])
                assert (plan.model.id, plan.provenance.metric, plan.budget.text) == (
                    cell["model"],
                    cell["metric"],
                    cell["budget"],
                )
        assert len(store.plans().items) == 8

    def test_the_same_request_is_the_same_sweep_until_a_fresh_one_is_asked_for(
        self, http: TestClient, store: Store, settings: Settings
    ) -> None:
        first = http.post("/v1/sweeps", json=BODY).json()
        assert http.post("/v1/sweeps", json=BODY).json()["id"] == first["id"]
        assert http.post("/v1/sweeps?fresh=true", json=BODY).json()["id"] == first["id"]  # it is under way
        do(store.jobs.get(first["job_id"]), store, settings)
        assert http.post("/v1/sweeps", json=BODY).json()["id"] == first["id"]
        fresh = http.post("/v1/sweeps?fresh=true", json=BODY).json()
        assert fresh["id"] != first["id"]
        assert http.post("/v1/sweeps", json={**BODY, "seed": 1}).json()["id"] not in (first["id"], fresh["id"])
        assert [item["id"] for item in http.get("/v1/sweeps").json()["items"]][1:] == [fresh["id"], first["id"]]

    @pytest.mark.parametrize("how", ["canceled", "failed"])
    def test_a_sweep_that_did_not_end_well_is_not_handed_out_again(self, http: TestClient, store: Store, how: str) -> None:
        first = http.post("/v1/sweeps", json=BODY).json()
        if how == "canceled":
            store.jobs.cancel(first["job_id"])
        else:
            store.jobs.begin(first["job_id"])
            store.jobs.finish(
                first["job_id"], problem={"type": "/problems/worker-lost", "title": "x", "status": 500, "detail": "x"}
            )
        again = http.post("/v1/sweeps", json=BODY).json()
        assert again["id"] != first["id"]
        assert again["status"] == "queued"

    def test_what_cannot_be_meant_is_refused_before_it_is_a_job(self, http: TestClient) -> None:
        wrong: list[dict[str, Any]] = [{"models": []}, {"budgets": []}, {"budgets": ["lots"]}, {"metrics": ["guess"]}]
        wrong += [{"targets": ["vlm"]}, {"models": "tiny"}, {"speed": "fast"}]
        wrong += [{"budgets": [f"{n}%" for n in range(1, 1001)], "models": [f"m{n}" for n in range(11)]}]
        for change in wrong:
            assert http.post("/v1/sweeps", json=BODY | change).status_code == 422
        assert http.get("/v1/jobs").json()["items"] == []
        assert http.get("/v1/sweeps").json()["items"] == []

    def test_names_that_come_twice_count_once(self) -> None:
        body = SweepBody(models=("a", "b", "a"), budgets=("1%", "1%"))
        assert [(cell.model, cell.budget) for cell in body.plan_bodies()] == [("a", "1%"), ("b", "1%")]


@pytest.fixture
def client(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr("bitplan.api.client.jobs.FIRST_POLL_SECONDS", 0.03)
    return Client(http=http)


class TestClients:
    def test_sweep_waits_shows_its_progress_and_returns_the_table(
        self, client: Client, store: Store, settings: Settings, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen: list[JobView] = []
        with hands(store, settings):
            found = client.sweep(**BODY, watch=seen.append)
        assert isinstance(found, Sweep)
        assert seen[-1].status == "succeeded"
        said = capsys.readouterr()
        assert said.out == ""
        assert "sweeping" in said.err
        assert len(found.rows) == 12
        assert len(found.plans) == 8
        least = min(
            (row.plan for row in found.rows if row.plan and row.model == "tiny" and row.budget == "40%"), key=lambda p: p.loss
        )
        assert found.best(model="tiny", budget="40%").plan == least
        again = client.sweep(**BODY)
        assert again == found == client.get_sweep(found.id)
        assert capsys.readouterr().err == ""
        assert [item.id for item in client.sweeps().items] == [found.id]
        assert client.sweep(**BODY, progress=False) == found

    def test_a_verified_sweep_is_judged_by_what_was_measured(self, client: Client, store: Store, settings: Settings) -> None:
        with hands(store, settings):
            found = client.sweep(["tiny"], ["20%", "40%"], verify=True, progress=False)
        assert found.best(budget="40%").by == "measured"
        assert found.best(budget="40%").loss == pytest.approx(1.1 * fakes.plan("40%").predicted.loss)

    def test_a_sweep_that_was_called_off_is_interrupted_and_begun_again(self, client: Client, store: Store) -> None:
        def cancel(job: JobView) -> None:
            store.jobs.cancel(job.id)

        with pytest.raises(Interrupted):
            client.sweep(["tiny"], ["20%"], watch=cancel, progress=False)
        assert client.submit_sweep(["tiny"], ["20%"]).status == "queued"
        assert len(client.sweeps().items) == 2

    def test_whoever_was_killed_while_waiting_finds_the_same_sweep(
        self, client: Client, http: TestClient, store: Store, settings: Settings
    ) -> None:
        class Killed(BaseException):
            pass

        def die(_: JobView) -> None:
            raise Killed

        with pytest.raises(Killed):
            client.sweep(["tiny"], ["20%"], watch=die, progress=False)
        (before,) = client.sweeps().items
        with hands(store, settings):
            assert Client(http=http).sweep(["tiny"], ["20%"], progress=False).id == before.id

    def test_mistakes_are_those_of_the_service(self, client: Client) -> None:
        with pytest.raises(UsageError, match="models"):
            client.sweep([], ["20%"])
        with pytest.raises(BitplanError, match="did you mean 'kl_fisher'"):
            client.sweep(["tiny"], ["20%"], metrics=["kl_fischer"])

    def test_a_table_is_written_whole(self, client: Client, store: Store, settings: Settings, tmp_path: Path) -> None:
        with hands(store, settings):
            client.sweep(["tiny"], ["20%", "1%"], progress=False).to_csv(tmp_path / "t.csv")
        lines = (tmp_path / "t.csv").read_text().splitlines()
        assert len(lines) == 3
        assert "smallest" in lines[2] or "1%" in lines[2]
