"""Calibrate until the plan holds still: no more tokens than the budget asked for needs.

The loss table is estimated on the first batches, then on more of them, and each time the plan for the budget is made anew.
The plan has stopped changing when its predecessor, priced by the newer table, would lose less than one per cent more than
the new plan, twice running. Batches are estimated once: a longer calibration adds to a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..sensitivity import METRICS
from ..sensitivity.calibration import Part
from ..sensitivity.estimate import Estimate
from ..sensitivity.network import Batch
from ..sensitivity.progress import silent
from ..sensitivity.report import Floats, SensitivityReport
from ..sensitivity.study import Study
from ..solvers import SOLVERS
from .build import build_problem
from .request import PlanRequest, ProfileRequest

FEWEST = 2  # batches of the first estimate
GROWTH = 1.5  # of their number from one estimate to the next
TOLERANCE = 0.01
TIMES = 2


def estimate_until_stable(request: ProfileRequest, study: Study) -> tuple[Estimate, Part]:
    """The estimate on as many batches of the data as it takes, and the part that these are."""
    metric = METRICS[request.metric]
    assert request.until_stable is not None
    network, part, progress = study.network, study.data, study.progress
    plan = PlanRequest(request, request.until_stable)
    kept: dict[str, Floats] = {}

    def once(name: str, compute: Callable[[], Floats]) -> Floats:
        if name not in kept:
            kept[name] = study.steps(name, compute)
        return kept[name]

    previous: npt.NDArray[np.int64] | None = None
    still, count, total = 0, min(FEWEST, len(part.batches)), len(part.batches)
    while True:
        progress("estimate until stable", count, total)
        some = replace(part, batches=part.batches[:count], labels=None if part.labels is None else part.labels[:count])
        estimate = metric.estimate(replace(study, part=some, steps=once, progress=silent))
        problem = build_problem(network.inventory, _table(study, estimate), plan).problem
        choice = SOLVERS["best"](problem).choice
        assert choice is not None
        items = np.arange(problem.items)
        if previous is not None:
            now, before = (float(problem.loss[items, chosen].sum()) for chosen in (choice, previous))
            still = still + 1 if before <= (1 + TOLERANCE) * now else 0
        if still == TIMES or count == total:
            break
        previous, count = choice, min(total, max(count + 1, int(GROWTH * count)))
    progress("estimate until stable", total, total)
    used, most = tokens_in(some), tokens_in(part)
    things, what = "tokens" if "input_ids" in part.batches[0] else "images", f"the plan for {request.until_stable}"
    if count < total:
        said = f"calibration stopped after {used:,} of {most:,} {things}: {what} had stopped changing"
    elif still == TIMES:
        said = f"{what} had stopped changing when all {most:,} {things} were used"
    else:
        said = f"{what} was not seen to stop changing in all {most:,} {things}; give more with --tokens"
    return replace(estimate, notes=(*estimate.notes, said)), some


def _table(study: Study, estimate: Estimate) -> SensitivityReport:
    units = tuple(unit.name for unit in study.units)
    return SensitivityReport(
        "",
        "",
        estimate.quantity,
        {},
        units,
        tuple(study.formats),
        estimate.loss,
        estimate.stderr,
        estimate.batches,
        "",
        "",
        "",
        0,
        0.0,
        {},
    )


def tokens_in(part: Part) -> int:
    """Tokens of texts, masked ones left out; examples of images."""
    return sum(int(batch["attention_mask"].sum()) if "attention_mask" in batch else _size(batch) for batch in part.batches)


def _size(batch: Batch) -> int:
    return batch["input_ids"].numel() if "input_ids" in batch else len(next(iter(batch.values())))
