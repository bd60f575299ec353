"""gptq_error: what GPTQ itself minimised, on the data it minimised it on: 1/N sum_j ||err_j||^2 over the columns it rounded.

GPTQ divides the error of column j by U_jj, err_j = (w_j - q_j) / U_jj, where w_j has answered for the columns before it and
H^-1 = U^T U with the damped H = sum over rows of x x^T + lambda I. It holds exactly (Frantar et al. 2023 report half of it as
the loss of a layer) that

    sum_j ||err_j||^2 = tr(dW (H + lambda I) dW^T) = ||dW U^-1||^2        dW = W_format - W

so the loss follows from any rendering and U, whatever the order of the columns. U is the one that rounded: the same data,
order, damping and treatment of inputs that never occur. N counts the predictions of that data.

It is free of sampling error only in the sense that nothing is estimated: GPTQ has fitted these very rows, so the number
flatters its rendering, the more the fewer rows there were. `output_error` takes the same trace on rows GPTQ has not seen.
Embeddings and grouped convolutions are rounded to nearest, without an H: they count their plain squared output error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.float64 import sum64
from ...kernels.rounding import Factor, inverse_factor
from ..changes import squared_output_error
from ..estimate import Estimate, empty_table, measured_pairs
from ..moments import Moments, adding_to
from ..network import Network, predictions, run
from ..probe import Rows, Use, watch_inputs
from ..render import Rendered, rendered_slices, unit_weights
from ..study import Study
from ..units import Unit


@torch.no_grad()
def estimate(study: Study) -> Estimate:
    """GPTQ's error for every unit and format. The study's data is not looked at.

    Raises ValueError unless the renderings were made by GPTQ.
    """
    network, renderings, formats = study.network, study.renderings, study.formats
    if renderings.rounding != "gptq" or renderings.part is None:
        raise ValueError(
            "gptq_error is GPTQ's own error and these weights were rounded to nearest; round by gptq or use output_error"
        )
    units, batches = study.units, renderings.part.batches
    total = len(batches) + len(units)
    position = {unit.name: u for u, unit in enumerate(units)}
    table = empty_table(units, formats)
    moments = Moments({}, {})

    def add_plain(use: Use, rows: Rows) -> None:
        weight = unit_weights(network.module, use.unit)[use.matrix]
        for f, fmt in measured_pairs(use.unit, formats):
            made = renderings(use.unit, fmt)[use.matrix]
            table[position[use.unit.name], f] += squared_output_error(made, weight, rows)

    for index, batch in enumerate(batches):
        study.progress("estimate", index, total)
        add_moment = adding_to(moments, network)

        def visit(use: Use, rows: Rows, add_moment: Callable[[Use, Rows], None] = add_moment) -> None:
            (add_plain if _rounded_plainly(network, use.unit) else add_moment)(use, rows)

        with watch_inputs(network, batch, units, visit):
            run(network, batch)
    site, factor = "", None
    for u, unit in enumerate(units):
        study.progress("estimate", len(batches) + u, total)
        for matrix, weight in enumerate(unit_weights(network.module, unit)):
            at = moments.site.get(unit.matrices[matrix].module, "")
            if not at or _rounded_plainly(network, unit):
                continue
            if factor is None or at != site:
                site, factor = at, inverse_factor(moments.second[at])
            for f, fmt in measured_pairs(unit, formats):
                table[u, f] += compensated_error(renderings(unit, fmt)[matrix], weight, factor)
    study.progress("estimate", total, total)
    count = sum(predictions(network, batch) for batch in batches)
    return Estimate(table / count, None, 0, "squared output error on the data of the rounding, with its damping")


def compensated_error(made: Rendered, weight: Tensor, factor: Factor) -> float:
    """sum_j ||err_j||^2 of `weight` (out, in) rounded to `made` by GPTQ with `factor`."""
    total = 0.0
    for _, delta in rendered_slices(made, weight):  # (in, outputs)
        errors = torch.linalg.solve_triangular(factor.upper.T, delta[factor.order], upper=False)
        total += float(sum64(errors.square()))
    return total


def _rounded_plainly(network: Network, unit: Unit) -> bool:
    module = network.module.get_submodule(unit.matrices[0].module)
    return unit.kind == "embedding" or getattr(module, "groups", 1) > 1
