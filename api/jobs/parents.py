"""Parents: jobs that ask for other jobs, wait for them, and plan from what these have stored.

They run no networks and wait beside one another, so a worker can hold any number of them. Whatever two parents want alike
is one child, measured once. A parent that is called off calls off the children that it asked for.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from ...allocator.errors import BitplanError, Interrupted
from ..problems import other_problem, problem_of
from ..schema import InspectBody, JobKind, JobView, PlanBody, ProfileBody, SweepBody, VerifyBody
from . import work
from .desk import Desk, Failed
from .progress import JobProgress
from .steps import step

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.25, 1.0


def plan(desk: Desk, job: JobView, tell: JobProgress) -> dict[str, Any]:
    family, body = Family(desk, job, tell), PlanBody.model_validate(job.input)
    inventory = family.inventory(body)
    profile = family.profile(body, inventory)
    plan_id: str = step("solve", lambda: work.plan_from_stored(desk.store, body, inventory, profile))
    if body.verify and not step("verified before", lambda: desk.store.plan(plan_id).evidence is not None):
        family.wait(family.ask("verify", VerifyBody(plan_id=plan_id).model_dump(), "verify"))
    return {"plan_id": plan_id, "href": f"/v1/plans/{plan_id}"}


def sweep(desk: Desk, job: JobView, tell: JobProgress) -> dict[str, Any]:
    """All that is to be measured is asked for at once; cells end in their order. One that fails fails no other."""
    family, body = Family(desk, job, tell), SweepBody.model_validate(job.input)
    sweep_id = desk.store.sweeps.create(body, job.id, job.owner).id
    cells = body.plan_bodies()
    failed = 0
    inventories = {model: family.ask_inventory(body, model) for model in body.models}
    asked = [family.ask_profile(cell, inventories[cell.model]) for cell in cells]
    planned: list[Cell] = []
    for index, (cell, needs) in enumerate(zip(cells, asked, strict=True)):
        tell("sweep", index, len(cells))
        desk.store.sweeps.start(sweep_id, index)
        planned.append(family.plan_cell(index, cell, needs))
        if not (body.verify and planned[-1].verification):
            failed += settle(desk, sweep_id, planned[-1])
    for done in planned:
        if body.verify and done.verification:
            tell("verify", done.index, len(cells))
            failed += settle(desk, sweep_id, family.verified(done))
    tell("sweep", len(cells), len(cells))
    return {"sweep_id": sweep_id, "plans": len(cells) - failed, "failed": failed, "href": f"/v1/sweeps/{sweep_id}"}


@dataclass(frozen=True)
class Cell:
    """What became of one cell: a plan, or a problem; `verification` is the job that measures the plan."""

    index: int
    plan_id: str | None = None
    problem: dict[str, Any] | None = None
    verification: str | None = None


@dataclass(frozen=True)
class Needs:
    """What a cell is planned from: an inventory and a profile (None: it needs none) by id, or the job that will say which,
    or why there will be none."""

    inventory: str | None = None
    profile: str | None = None
    job: str | None = None
    problem: dict[str, Any] | None = None


def settle(desk: Desk, sweep_id: str, cell: Cell) -> bool:
    """Write a cell down; true when it failed."""
    plan_id = None if cell.problem is not None else cell.plan_id
    step(f"settle {cell.index}", lambda: desk.store.sweeps.settle(sweep_id, cell.index, plan_id, cell.problem))
    return cell.problem is not None


class Family:
    """A parent's dealings with its children. `mark` tells steps of one kind apart."""

    def __init__(self, desk: Desk, job: JobView, tell: JobProgress) -> None:
        self._desk, self._job, self._tell = desk, job, tell

    def ask(self, kind: JobKind, document: dict[str, Any], mark: str) -> str:
        """The id of the job that does this work: a new one, or one that is under way for whomever."""
        job = self._job
        submitted: str = step(f"ask {mark}", lambda: self._desk.jobs.submit(kind, document, owner=job.owner, parent=job.id).id)
        return submitted

    def wait(self, child_id: str) -> JobView:
        """The child once it has ended well; its progress is this job's meanwhile. Raises Failed."""
        told, pause = None, POLL_SECONDS
        for again in itertools.count():
            while not (child := self._desk.store.jobs.get(child_id)).finished:
                self._desk.pause()
                if child.progress is not None and child.progress != told:
                    self._tell.pass_on(child.progress)
                    told = child.progress
                elif self._desk.store.jobs.get(self._job.id).status != "running":
                    raise Interrupted("canceled on request; what was measured is kept")
                time.sleep(pause)
                pause = min(LONGEST_POLL_SECONDS, 1.05 * pause)  # hundreds of parents may wait for hours
            if child.status == "canceled" and child.parent != self._job.id:  # whoever had asked for it wants it no longer
                child_id = self.ask(child.kind, child.input, f"{child.kind} of {child_id} again {again}")
                continue
            if child.error is not None:
                raise Failed(child.error.model_dump())
            if child.status != "succeeded":
                raise Failed(other_problem("child-canceled", f"{child.id}, which this waited for, was canceled; submit it again"))
            return child
        raise AssertionError

    def inventory(self, body: PlanBody) -> str:
        """The fingerprint of the model's stored inventory, which is made where there is none. Raises Failed."""
        needs = self._ask_inventory(body.model, body.stream)
        return needs.inventory or self._fingerprint(needs)

    def profile(self, body: PlanBody, inventory: str) -> str | None:
        """The id of the stored profile that the plan needs, measured where there is none. Raises Failed."""
        needs = self._ask_profile(body, inventory)
        return needs.profile if needs.job is None else str(self._result(needs.job)["profile_id"])

    def ask_inventory(self, body: SweepBody, model: str) -> Needs:
        """`inventory` without waiting."""
        return self._caught(lambda: self._ask_inventory(model, body.stream))

    def ask_profile(self, cell: PlanBody, inventory: Needs) -> Needs:
        """`profile` as soon as the inventory is there, without waiting for the profile."""

        def ask() -> Needs:
            if inventory.problem is not None:
                return inventory
            return self._ask_profile(cell, inventory.inventory or self._fingerprint(inventory))

        return self._caught(ask)

    def plan_cell(self, index: int, cell: PlanBody, needs: Needs) -> Cell:
        """The plan of a cell, and its verification asked for where it is wanted."""
        if needs.problem is not None:
            return Cell(index, problem=needs.problem)
        try:
            profile = needs.profile if needs.job is None else str(self._result(needs.job)["profile_id"])
            assert needs.inventory is not None
            store, inventory = self._desk.store, needs.inventory
            plan_id: str = step(f"solve {index}", lambda: work.plan_from_stored(store, cell, inventory, profile))
            if not cell.verify or step(f"verified before {index}", lambda: store.plan(plan_id).evidence is not None):
                return Cell(index, plan_id)
            return Cell(
                index, plan_id, verification=self.ask("verify", VerifyBody(plan_id=plan_id).model_dump(), f"verify {index}")
            )
        except Failed as error:
            return Cell(index, problem=error.problem)

    def verified(self, cell: Cell) -> Cell:
        """A cell once its plan has been measured."""
        assert cell.verification is not None
        try:
            self.wait(cell.verification)
        except Failed as error:
            return Cell(cell.index, problem=error.problem)
        return cell

    def _caught(self, ask: Any) -> Needs:
        try:
            needs: Needs = ask()
        except Failed as error:
            return Needs(problem=error.problem)
        except BitplanError as error:
            if isinstance(error, Interrupted):
                raise
            return Needs(problem=problem_of(error))
        return needs

    def _ask_inventory(self, model: str, stream: bool) -> Needs:
        desk = self._desk
        found = step(f"look at {model}", lambda: work.known_inventory(desk.store, desk.home, model))
        if found is not None:
            return Needs(inventory=found)
        return Needs(job=self.ask("inspect", InspectBody(model=model, stream=stream).model_dump(), f"inspect {model}"))

    def _ask_profile(self, body: PlanBody, inventory: str) -> Needs:
        """Raises Failed where the inventory alone shows that nothing fits."""
        desk, mark = self._desk, f"{body.model} {body.metric} {body.target} {body.budget}"
        found = step(f"look for {mark}", lambda: work.known_profile(desk.store, desk.home, body, inventory))
        if found["known"]:
            return Needs(inventory, found["profile"])
        profile = ProfileBody.model_validate(found["measure"])
        return Needs(inventory, job=self.ask("profile", profile.model_dump(), f"profile {mark}"))

    def _fingerprint(self, needs: Needs) -> str:
        assert needs.job is not None
        return str(self._result(needs.job)["fingerprint"])

    def _result(self, child_id: str) -> dict[str, Any]:
        result = self.wait(child_id).result
        assert result is not None
        return result
