"""fisher_trace: the trace of the Fisher information times the squared change (as FIT, 2022).

    loss[u, f] = 1/2 * (Tr F_u / n_u) * ||dW||^2,   Tr F_u = 1/N sum over the n_u weights of squared gradients

the diagonal of `fisher_diagonal.py` with every weight of a unit given the unit's mean: right when the error is spread evenly
and knows nothing of the curvature. FIT itself leaves out the 1/2 and takes the model of the error (its variance from the step
of the grid) where this takes the error that the rendering has. The factor 1/2 makes it nats a prediction.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from ..changes import squared_changes
from ..flow import Flow, Passage, estimate_flow
from ..network import sampled_objective
from ..probe import Rows, Use
from ..report import Floats
from ..squared_gradients import examples_of, trace


def sums(passage: Passage) -> Floats:
    """1/2 (sum of squared gradients / n_u) ||dW||^2 of one batch, (units, formats)."""
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    traces = np.zeros(len(passage.units))
    examples = examples_of(passage.network.inventory.outputs, passage.examples)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        traces[position[use.unit.name]] += trace(rows, g, examples)

    passage.drive(visit)
    sizes = np.array([unit.parameters for unit in passage.units], dtype=np.float64)
    errors = squared_changes(passage.network, passage.renderings, passage.units, passage.formats)
    return np.asarray((traces / (2 * sizes))[:, None] * errors)


FLOW = Flow(sums, sampled_objective)
estimate = partial(estimate_flow, FLOW)
