"""What each kind of job does, and how it tells of its progress.

The functions of WORK run in the worker and on the command line alike: they ask the allocator, keep what it hands back
in the store, and return a small document that says where to find it. Each part is kept as soon as it exists, so that a
job taken up again after a crash finds its finished parts done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...allocator.errors import Interrupted
from ..schema import InspectBody, JobKind, JobView, PlanBody, ProfileBody, Progress, VerifyBody
from ..store import Store

if TYPE_CHECKING:
    from ...allocator import ExecutionReport, Inventory, Plan, SensitivityReport

Tell = Callable[[str, int, int], None]
REPORT_SECONDS = 0.25


def inspect_model(store: Store, home: Path, body: InspectBody, tell: Tell) -> Inventory:
    """The model's inventory, stored."""
    from ... import allocator

    inventory = allocator.inspect_model(body.model, home=home, progress=tell, stream=body.stream)
    store.put_inventory(inventory)
    return inventory


def profile_model(store: Store, home: Path, body: ProfileBody, tell: Tell) -> SensitivityReport:
    """The model's sensitivity report, stored."""
    from ... import allocator

    request = body.profile_request()
    request.check()
    request.check_device()
    inspect_model(store, home, InspectBody(model=body.model, stream=body.stream), tell)
    report = allocator.profile_model(request, home=home, progress=tell)
    store.put_profile(report, body)
    return report


def make_plan(store: Store, home: Path, body: PlanBody, tell: Tell) -> Plan:
    """The plan, stored; measured too when the body asks for that and it never was."""
    from ... import allocator

    plan = allocator.allocate(
        body.model,
        body.budget,
        target=body.target,
        metric=body.metric,
        solver=body.solver,
        formats=body.formats,
        pins=body.pins,
        calibration=body.calibration,
        tokens=body.tokens,
        seed=body.seed,
        rounding=body.rounding,
        until_stable=body.until_stable,
        stream=body.stream,
        sibling=body.sibling,
        device=body.device,
        latency_ms=body.latency_ms,
        latency_device=body.latency_device,
        home=home,
        progress=tell,
    )
    keep_sources(store, home, body)
    store.put_plan(plan)
    if body.verify and store.plan(plan.id).evidence is None:
        verify_plan(store, home, plan, tell, device=body.device)
    return store.plan(plan.id)


def keep_sources(store: Store, home: Path, body: PlanBody) -> None:
    """Store the inventory and the profile that a plan was made from."""
    from ... import allocator

    inventory = allocator.known_inventory(body.model, home)
    report = allocator.known_profile(body.plan_request().measured, home)
    if inventory is not None:
        store.put_inventory(inventory)
    if report is not None:
        store.put_profile(report, body.profile())


def verify_plan(
    store: Store, home: Path, plan: Plan, tell: Tell, data: str | None = None, device: str = "auto"
) -> ExecutionReport:
    """Measure a plan and attach what was measured to it, stored."""
    from ... import allocator

    report = allocator.verify(plan, data=data, device=device, home=home, progress=tell)
    store.put_plan(plan.model_copy(update={"evidence": report.to_json()}))
    return report


def perform(job: JobView, store: Store, home: Path, tell: Tell) -> dict[str, Any]:
    """Do a job's work and say where its result lies."""
    return WORK[job.kind](job.input, store, home, tell)


def _inspect(document: dict[str, Any], store: Store, home: Path, tell: Tell) -> dict[str, Any]:
    inventory = inspect_model(store, home, InspectBody.model_validate(document), tell)
    return {"fingerprint": inventory.fingerprint, "href": f"/v1/inventory?model={document['model']}"}


def _profile(document: dict[str, Any], store: Store, home: Path, tell: Tell) -> dict[str, Any]:
    report = profile_model(store, home, ProfileBody.model_validate(document), tell)
    return {"profile_id": report.id, "href": f"/v1/profiles/{report.id}"}


def _plan(document: dict[str, Any], store: Store, home: Path, tell: Tell) -> dict[str, Any]:
    plan = make_plan(store, home, PlanBody.model_validate(document), tell)
    return {"plan_id": plan.id, "href": f"/v1/plans/{plan.id}"}


def _verify(document: dict[str, Any], store: Store, home: Path, tell: Tell) -> dict[str, Any]:
    body = VerifyBody.model_validate(document)
    report = verify_plan(store, home, store.plan(body.plan_id), tell)
    return {"plan_id": body.plan_id, "passed": report.passed, "href": f"/v1/plans/{body.plan_id}"}


WORK: dict[JobKind, Callable[[dict[str, Any], Store, Path, Tell], dict[str, Any]]] = {
    "inspect": _inspect,
    "profile": _profile,
    "plan": _plan,
    "verify": _verify,
}


class JobProgress:
    """Writes a job's progress into its row, four times a second at most, and raises Interrupted when it is to stop.

    The time to the end of a stage is guessed from its own pace: elapsed * (1 - fraction) / fraction.
    """

    def __init__(self, store: Store, job_id: str, stopping: Callable[[], bool]) -> None:
        self._store, self._job_id, self._stopping = store, job_id, stopping
        self._stage = ""
        self._began = self._told = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._stopping():
            raise Interrupted("the worker is stopping; what was measured is kept and the job goes on when it is back")
        moment = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, moment
        elif done < total and moment - self._told < REPORT_SECONDS:
            return
        self._told = moment
        fraction = min(done / total, 1.0) if total else 0.0
        eta = (moment - self._began) * (1 - fraction) / fraction if fraction > 0 else None
        progress = Progress(stage=stage, done=done, total=total, fraction=fraction, eta_seconds=eta)
        if not self._store.jobs.report(self._job_id, progress):
            raise Interrupted("canceled on request; what was measured is kept")
