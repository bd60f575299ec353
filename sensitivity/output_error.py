"""output_error: the layer-wise proxy tr(dW H dW^T) = mean over rows of ||dW x_r||^2, dW = W_format - W.

The objective that GPTQ and its family minimise inside a layer. It knows nothing of what follows the layer, so numbers of
different layers stand on different scales; it is here because the field uses it, and `divergence` shows what that costs.
An expert's and a tied weight's uses are added; N counts the model's predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ..kernels.packing import PackedWeight
from ..kernels.reference import gather_rows
from .calibration import Part
from .estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from .network import Batch, Network, predictions, run
from .probe import Rows, Use, watch_inputs
from .progress import Progress, Steps
from .render import Renderings, rendered_transposed
from .report import Floats


def estimate(
    network: Network,
    renderings: Renderings,
    part: Part | None,
    formats: Sequence[str],
    seed: int,
    steps: Steps,
    progress: Progress,
) -> Estimate:
    """Squared output error a prediction for every unit and format, with standard errors over batches.

    Raises ValueError without data.
    """
    if part is None:
        raise ValueError("output_error needs calibration data; give some, or use weight_error")
    sums, counts = [], []
    for index, batch in enumerate(part.batches):
        progress("estimate", index, len(part.batches))
        sums.append(steps(f"batch {index}", partial(_batch_sums, network, renderings, batch, formats)))
        counts.append(predictions(network, batch))
    progress("estimate", len(part.batches), len(part.batches))
    return ratio_estimate(sums, counts, "squared output error")


@torch.no_grad()
def _batch_sums(network: Network, renderings: Renderings, batch: Batch, formats: Sequence[str]) -> Floats:
    units = network.inventory.units
    position = {unit.name: u for u, unit in enumerate(units)}
    table = empty_table(units, formats)

    def visit(use: Use, rows: Rows) -> None:
        weight = network.module.get_parameter(f"{use.module}.weight").flatten(1)
        for f, fmt in measured_pairs(use.unit, formats):
            made = renderings(use.unit, fmt)[use.matrix]
            if rows.one_hot:
                rendered = gather_rows(made, rows.x) if isinstance(made, PackedWeight) else made[rows.x].float()
                error = float((rendered - weight[rows.x]).double().square().sum())
            else:
                delta = rendered_transposed(made) - weight.T
                columns = delta.view(delta.shape[0], len(rows.x), -1).transpose(0, 1)  # (parts, in, out_per_part)
                error = float((rows.x @ columns).square().sum(dtype=torch.float64))
            table[position[use.unit.name], f] += error

    with watch_inputs(network, batch, units, visit):
        run(network, batch)
    return table
