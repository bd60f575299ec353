"""Flow: a metric that adds up, batch by batch, a function of what flows through each unit.

Most metrics are of this kind. Such a metric names the scalar whose gradient flows back (`objective`, None when inputs are
enough) and gives `sums(passage)`, the table of one batch. What drives the batch through the network is not its business:
`estimate_flow` takes the whole network at once, `streaming.py` one block after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .estimate import Estimate, empty_table, ratio_estimate
from .network import Batch, Network, predictions, run, sampled_objective
from .probe import Rows, Use, watch_gradients, watch_inputs
from .render import Renderings
from .report import Floats
from .study import Study
from .units import Outputs, Unit

# An example with one output is one draw from its Fisher information, and rare: on 256 images for a residual network the draw
# alone scattered losses by 19 %. A window of text holds hundreds of predictions, and more text is worth more than more draws.
DRAWS: dict[Outputs, int] = {"tokens": 1, "classes": 4, "pooled": 4}

Visit = Callable[[Use, Rows, Tensor], None]  # the gradient is empty where a metric asked for inputs only
Objective = Callable[[Network, Tensor, Batch, Tensor | None, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Passage:
    """One batch on its way through `units`; `drive(visit)` sends it and calls `visit` at every use."""

    network: Network
    renderings: Renderings
    units: Sequence[Unit]
    formats: Sequence[str]
    batch: Batch
    drive: Callable[[Visit], None]

    @property
    def examples(self) -> int:
        return len(next(iter(self.batch.values())))


@dataclass(frozen=True)
class Flow:
    """`sums(passage)` is the table (units, formats) of one batch, NaN where a unit does not admit a format; divided by the
    number of predictions it is the loss. `quantity` None means the network's own divergence."""

    sums: Callable[[Passage], Floats]
    objective: Objective | None = None
    quantity: str | None = None


def estimate_flow(flow: Flow, study: Study) -> Estimate:
    """The loss table of `flow` with standard errors over batches, the whole network in memory; one step a batch."""
    network, part = study.network, study.data
    sums, counts = [], []
    for index, batch in enumerate(part.batches):
        study.progress("estimate", index, len(part.batches))
        labels = part.classes(index)
        drawn = []
        for draw in range(draws_of(flow, network)):
            drive = partial(drive_whole, network, flow.objective, batch, labels, seed_of(study.seed, index, draw))
            passage = Passage(network, study.renderings, study.units, study.formats, batch, drive)
            drawn.append(study.steps(f"batch {index}" + (f" draw {draw}" if draw else ""), partial(batch_sums, flow, passage)))
        sums.append(np.mean(drawn, axis=0))
        counts.append(predictions(network, batch))
    study.progress("estimate", len(part.batches), len(part.batches))
    return ratio_estimate(sums, counts, flow.quantity or network.quantity)


def draws_of(flow: Flow, network: Network) -> int:
    """How many random objectives a batch is sent with; their tables are averaged."""
    return DRAWS[network.inventory.outputs] if flow.objective is sampled_objective else 1


def seed_of(seed: int, batch: int, draw: int) -> int:
    """The seed of one objective."""
    return seed + batch + 100_003 * draw


def batch_sums(flow: Flow, passage: Passage) -> Floats:
    """`flow.sums(passage)`, checked. Raises ValueError, naming a unit, when what flows through it is not finite."""
    table = flow.sums(passage)
    wrong = ~np.isfinite(table) & ~np.isnan(empty_table(passage.units, passage.formats))
    if wrong.any():
        unit = passage.units[int(np.argwhere(wrong)[0, 0])]
        raise ValueError(f"what flows through unit {unit.name!r} is NaN or infinite; check the weights and the calibration data")
    return table


def drive_whole(
    network: Network, objective: Objective | None, batch: Batch, labels: Tensor | None, seed: int, visit: Visit
) -> None:
    """Send `batch` through the whole network and, where there is an objective, its gradient back."""
    units = network.inventory.units
    if objective is None:
        nothing = torch.empty(0)
        with torch.no_grad(), watch_inputs(network, batch, units, lambda use, rows: visit(use, rows, nothing)):
            run(network, batch)
        return
    with watch_gradients(network, batch, units, visit):
        scalar = scalar_of(objective, network, run(network, batch), batch, labels, seed)
        if scalar.requires_grad:
            scalar.backward()  # type: ignore[no-untyped-call]


def scalar_of(objective: Objective, network: Network, output: Tensor, batch: Batch, labels: Tensor | None, seed: int) -> Tensor:
    """The scalar whose gradient flows back. Raises ValueError when the model's output is NaN or infinite."""
    if not bool(torch.isfinite(output.detach().amax())):  # of minus infinity alone a model may make a ban
        raise ValueError("the model's output is NaN or infinite; check the weights and the calibration data")
    return objective(network, output, batch, labels, torch.Generator().manual_seed(seed))
