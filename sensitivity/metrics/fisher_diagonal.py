"""fisher_diagonal: the second-order estimate of the divergence, as if weights did not interact.

    loss[u, f] = 1/2 sum_ij F_ij dW_ij^2,   F_ij = 1/N sum (gradient of c . output by W_ij)^2

F is the diagonal of the true Fisher information: c is a random direction of the model's own output (`sampled_objective`), N
counts predictions. Gradients are squared by token for models that predict tokens and by example for the others; see
`squared_gradients.py`. Compared with kl_fisher it drops all products dW_ij dW_kl of different weights; rounding errors of
different weights are nearly uncorrelated under rounding to nearest, but not under GPTQ, which makes them cancel on purpose.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..changes import part_changes, row_changes
from ..estimate import empty_table, measured_pairs
from ..flow import Flow, Passage, estimate_flow
from ..network import sampled_objective
from ..probe import Rows, Use
from ..report import Floats
from ..squared_gradients import examples_of, squared_gradients, squared_lookup_gradients


def sums(passage: Passage) -> Floats:
    """1/2 sum_ij (squared gradients)_ij dW_ij^2 of one batch, (units, formats)."""
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    table = empty_table(passage.units, passage.formats)
    examples = examples_of(passage.network.inventory.outputs, passage.examples)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").flatten(1)
        if rows.one_hot:
            ids, squares = squared_lookup_gradients(rows, g, examples)
        else:
            squares = squared_gradients(rows, g, examples)
        for f, fmt in measured_pairs(use.unit, passage.formats):
            made = passage.renderings(use.unit, fmt)[use.matrix]
            if rows.one_hot:
                found = float((row_changes(made, weight, ids).square() * squares).sum())
            else:
                found = sum(
                    float((delta.square() * squares[part][:, outputs]).sum())
                    for part, outputs, delta in part_changes(made, weight, len(g))
                )
            table[position[use.unit.name], f] += found / 2

    passage.drive(visit)
    return table


FLOW = Flow(sums, sampled_objective)
estimate = partial(estimate_flow, FLOW)
