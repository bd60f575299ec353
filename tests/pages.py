"""A store that has everything a page can show, made of fakes; for the tests of pages, with and without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import fakes
from bitplan.allocator import Plan, ProfileRequest
from bitplan.api.problems import other_problem
from bitplan.api.schema import SweepBody
from bitplan.api.settings import Settings
from bitplan.api.store import Store

EVIL = '<script>alert(1)</script>"\' onmouseover="alert(2)'


@dataclass(frozen=True)
class Filled:
    """What lies in the store: ids to ask for."""

    plan: Plan  # measured
    other: Plan  # of the same model
    experts: Plan
    evil: Plan  # whose model has a name that no template may print as it is
    profile: str
    sweep: str
    failed_job: str

    def addresses(self) -> dict[str, str]:
        """Name -> address of every page."""
        return {
            "plans": "/",
            "plan": f"/plans/{self.plan.id}",
            "experts": f"/plans/{self.experts.id}",
            "evil": f"/plans/{self.evil.id}",
            "compare": f"/compare?plan={self.plan.id}&plan={self.other.id}",
            "frontiers": "/profiles",
            "frontier": f"/profiles/{self.profile}",
            "sweeps": "/sweeps",
            "sweep": f"/sweeps/{self.sweep}",
            "jobs": "/jobs",
            "job": f"/jobs/{self.failed_job}",
            "models": "/models",
            "model": f"/models/{self.plan.model.fingerprint}",
            "api": "/about",
            "new": "/new",
            "login": "/login",
        }


@dataclass(frozen=True)
class Service:
    """A service over a filled store, for tests that change nothing in it."""

    http: TestClient
    store: Store
    filled: Filled


@contextmanager
def service(home: Path) -> Iterator[Service]:
    from bitplan.api.app import create_app

    with pytest.MonkeyPatch.context() as monkeypatch:
        fakes.install(monkeypatch)
        settings = Settings.from_environment(home)
        application = create_app(settings)
        with TestClient(application, raise_server_exceptions=False) as http:
            yield Service(http, application.state.store, fill(http, application.state.store, settings))


def fill(http: TestClient, store: Store, settings: Settings) -> Filled:
    """Everything once. The service's models are fakes."""
    for model in ("tiny", "experts"):
        fakes.profile_model(ProfileRequest(model), home=settings.home)
    plan, other, experts = (
        _plan(http, model, budget) for model, budget in (("tiny", "25%"), ("tiny", "28%"), ("experts", "35%"))
    )
    store.attach_evidence(plan.id, fakes.evidence(plan))
    plan = store.plan(plan.id)
    evil = plan.model_copy(update={"id": "e" * 64, "model": plan.model.model_copy(update={"id": EVIL})})
    store.put_plan(evil)
    body = SweepBody(models=("tiny", EVIL), budgets=("25%", "1%"))
    job = store.jobs.submit("sweep", body.model_dump(mode="json"))
    sweep = store.sweeps.create(body, job.id)
    problem = other_problem("not-available", f"{EVIL} is not available")
    store.sweeps.settle(sweep.id, 0, plan_id=plan.id)
    store.sweeps.settle(sweep.id, 1, problem=problem)
    store.jobs.begin(job.id)
    store.jobs.finish(job.id, problem=problem)
    profile = plan.provenance.profile_id
    assert profile is not None
    return Filled(plan, other, experts, evil, profile, sweep.id, job.id)


def _plan(http: TestClient, model: str, budget: str) -> Plan:
    made = http.post("/v1/plans", json={"model": model, "budget": budget})
    assert made.status_code in (200, 201), made.text
    return Plan.model_validate(made.json())
