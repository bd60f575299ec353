"""output_error: the layer-wise proxy tr(dW H dW^T) = mean over rows of ||dW x_r||^2, dW = W_format - W.

The objective that GPTQ and its family minimise inside a layer. It knows nothing of what follows the layer, so numbers of
different layers stand on different scales; it is here because the field uses it, and `divergence` shows what that costs.
An expert's and a tied weight's uses are added; N counts the model's predictions.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..changes import squared_output_error
from ..estimate import empty_table, measured_pairs
from ..flow import Flow, Passage, estimate_flow
from ..probe import Rows, Use
from ..report import Floats


def sums(passage: Passage) -> Floats:
    """sum over rows of ||dW x_r||^2 for one batch, (units, formats)."""
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    table = empty_table(passage.units, passage.formats)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").flatten(1)
        for f, fmt in measured_pairs(use.unit, passage.formats):
            made = passage.renderings(use.unit, fmt)[use.matrix]
            table[position[use.unit.name], f] += squared_output_error(made, weight, rows)

    passage.drive(visit)
    return table


FLOW = Flow(sums, quantity="squared output error")
estimate = partial(estimate_flow, FLOW)
