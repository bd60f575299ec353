"""A sweep without a service: every plan made in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...allocator.errors import BitplanError, Interrupted
from ..client import Sweep
from ..jobs import work
from ..jobs.progress import Tell
from ..planning import check_body
from ..problems import problem_of
from ..schema import PlanSummary, Problem, SweepBody, SweepCell
from ..store.plans import summary_of

if TYPE_CHECKING:
    from ...allocator import Plan
    from ..settings import Settings
    from ..store import Store


def local_sweep(store: Store, settings: Settings, body: SweepBody, tell: Tell) -> Sweep:
    """Every plan of a sweep. What cannot be planned keeps its error; the others go on. What was measured by an earlier
    call is not measured again, and so the same sweep goes on where it was interrupted."""
    bodies = body.plan_bodies()
    for cell in bodies:
        check_body(cell, settings)
    rows = []
    for index, cell in enumerate(bodies):
        tell("sweep", index, len(bodies))
        where = {"index": index, "model": cell.model, "metric": cell.metric, "target": cell.target, "budget": cell.budget}
        try:
            plan = work.make_plan(store, settings.home, cell, tell)
        except Interrupted:
            raise
        except BitplanError as error:
            problem = Problem.model_validate(problem_of(error))
            rows.append(SweepCell.model_validate({**where, "status": "failed", "error": problem}))
        else:
            rows.append(SweepCell.model_validate({**where, "status": "succeeded", "plan": _summary(plan)}))
    tell("sweep", len(bodies), len(bodies))
    return Sweep("", tuple(rows))


def _summary(plan: Plan) -> PlanSummary:
    """As the store's lists show the plan."""
    if plan.evidence is None:
        return summary_of(plan)
    measured = {"verified": plan.evidence["passed"], "measured_loss": plan.evidence["loss"]["measured"]}
    return summary_of(plan).model_copy(update=measured)
