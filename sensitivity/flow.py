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

from .calibration import Part
from .estimate import Estimate, empty_table, ratio_estimate
from .network import Batch, Network, predictions, run
from .probe import Rows, Use, watch_gradients, watch_inputs
from .progress import Progress, Steps
from .render import Renderings
from .report import Floats
from .units import Unit

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


def estimate_flow(
    flow: Flow,
    network: Network,
    renderings: Renderings,
    part: Part,
    formats: Sequence[str],
    seed: int,
    steps: Steps,
    progress: Progress,
) -> Estimate:
    """The loss table of `flow` with standard errors over batches, the whole network in memory; one step a batch."""
    sums, counts = [], []
    for index, batch in enumerate(part.batches):
        progress("estimate", index, len(part.batches))
        labels = None if part.labels is None else part.labels[index]
        drive = partial(drive_whole, network, flow.objective, batch, labels, seed + index)
        passage = Passage(network, renderings, network.inventory.units, formats, batch, drive)
        sums.append(steps(f"batch {index}", partial(batch_sums, flow, passage)))
        counts.append(predictions(network, batch))
    progress("estimate", len(part.batches), len(part.batches))
    return ratio_estimate(sums, counts, flow.quantity or network.quantity)


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
        scalar = objective(network, run(network, batch), batch, labels, torch.Generator().manual_seed(seed))
        if scalar.requires_grad:
            scalar.backward()  # type: ignore[no-untyped-call]
