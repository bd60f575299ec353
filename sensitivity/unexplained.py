"""What the other inputs leave unexplained of each input, the weight of a rounding error that the others make up for.

If w_ij is moved and the weights of other columns may answer, what remains of the squared output error is dW_ij^2 times

    1 / [H^-1]_jj    when all other columns may answer                     (optimal brain surgeon, SparseGPT)
    1 / d_j^2        when those rounded later may, d_j = U_jj, H^-1 = U^T U  (GPTQ, and with it BAQ and SliM-LLM)

with H = sum over rows of x x^T + lambda I. Both are the squares left over when input j is regressed, with penalty lambda, on
those other inputs: the minimum over a of sum_r (x_rj - sum_k a_k x_rk)^2 + lambda (1 + |a|^2). At a minimum the coefficients
do not answer to a small change of the data, so a batch's share is its own sum of squared residuals, and a loss
sum_j c_j / d_j^2 is to first order a sum over batches, from which its standard error follows (the infinitesimal jackknife).

Inputs that never occur weigh nothing. Grouped convolutions have no H kept: their inputs count as uncorrelated, and weigh
their squares. An embedding's lookups count the squared error of the rows they read: one-hot inputs are uncorrelated.

Two forward passes over the part. Memory: an (in, in) matrix for each tensor that units are fed, as rounding by GPTQ has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..kernels.float64 import as_float64, sum64
from ..kernels.rounding import inverse_factor
from .changes import squared_output_error
from .estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from .moments import collect_moments
from .network import Batch, predictions, run
from .probe import Rows, Use, uses, watch_inputs
from .render import Rendered, unit_weights
from .report import Floats
from .study import Study

DAMPING = 0.01  # of the mean diagonal, where every column may answer; SparseGPT's share
Cost = Callable[[Rendered, Tensor, int], Tensor]  # a rendering, the weight (out, in), its parts -> c_j, float64 (parts, in)


@dataclass(frozen=True, eq=False)
class Unexplained:
    """A row x (in,) leaves x @ `mixing` unexplained; over all rows seen, squares summed and `floor` (the penalty's share)
    added make 1/d_j^2. `mixing` (in, in) float32, `floor` (in,) float64."""

    mixing: Tensor
    floor: Tensor


def by_all_others(moment: Tensor) -> Unexplained:
    """1 / [H^-1]_jj, in whatever order columns are rounded. `moment` (in, in) is the sum of x x^T."""
    exact = as_float64(moment)
    mean = float(exact.diagonal().mean())
    damped = exact + DAMPING * (mean if mean > 0 else 1.0) * torch.eye(len(exact), dtype=torch.float64, device=exact.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return _unexplained(moment, inverse / inverse.diagonal(), 1 / inverse.diagonal())


def by_those_open(moment: Tensor) -> Unexplained:
    """1 / d_j^2 in the order, and with the damping, in which our GPTQ rounds columns. `moment` (in, in) is the sum of x x^T."""
    factor = inverse_factor(moment)
    upper = as_float64(factor.upper)
    order = factor.order.to(upper.device)
    mixing, value = torch.empty_like(upper), torch.empty_like(upper.diagonal())
    mixing[order[:, None], order] = (upper / upper.diagonal()[:, None]).T
    value[order] = upper.diagonal() ** -2
    return _unexplained(moment, mixing, value)


def _unexplained(moment: Tensor, mixing: Tensor, value: Tensor) -> Unexplained:
    device, moment = moment.device, as_float64(moment)
    squares = ((moment @ mixing) * mixing).sum(dim=0)
    floor = torch.where(moment.diagonal() > 0, value - squares, 0.0).clamp(min=0)
    return Unexplained(mixing.float().to(device), floor)


@torch.no_grad()
def estimate_unexplained(explain: Callable[[Tensor], Unexplained], cost: Cost, quantity: str, study: Study) -> Estimate:
    """1/N sum_j c_j(format) / d_j^2 for every unit and format; uses of a tied weight and an expert's matrices are added."""
    network, units, batches = study.network, study.units, study.data.batches
    total = 2 * len(batches) + len(units)

    def tell(stage: str, done: int, of: int) -> None:
        if done < of:
            study.progress("estimate", done, total)

    moments = collect_moments(network, units, study.data, tell)
    left: dict[str, Unexplained] = {}
    costs: dict[tuple[str, int], Tensor] = {}  # (module of a use, format) -> c_j
    for u, unit in enumerate(units):
        study.progress("estimate", len(batches) + u, total)
        for use in uses(network, [unit]):
            if use.module in moments.second:
                left[use.module] = explain(moments.second.pop(use.module))
            _add_costs(costs, cost, study, use)
    counts = [predictions(network, batch) for batch in batches]
    sums = []
    for index, batch in enumerate(batches):
        study.progress("estimate", len(batches) + len(units) + index, total)
        share = counts[index] / sum(counts)
        compute = partial(_sums, study, batch, moments.site, left, costs, share)
        sums.append(study.steps(f"batch {index}", compute))
    study.progress("estimate", total, total)
    return ratio_estimate(sums, counts, quantity)


def _add_costs(costs: dict[tuple[str, int], Tensor], cost: Cost, study: Study, use: Use) -> None:
    module = study.network.module.get_submodule(use.module)
    if isinstance(module, torch.nn.Embedding):
        return
    weight, parts = unit_weights(study.network.module, use.unit)[use.matrix], getattr(module, "groups", 1)
    for f, fmt in measured_pairs(use.unit, study.formats):
        costs[use.module, f] = cost(study.renderings(use.unit, fmt)[use.matrix], weight, parts)


@torch.no_grad()
def _sums(
    study: Study,
    batch: Batch,
    site: dict[str, str],
    left: dict[str, Unexplained],
    costs: dict[tuple[str, int], Tensor],
    share: float,
) -> Floats:
    """sum_j c_j / d_j^2 of one batch, (units, formats); it takes `share` of the floors."""
    network, units, formats = study.network, study.units, study.formats
    table = empty_table(units, formats)
    position = {unit.name: u for u, unit in enumerate(units)}
    squares = {module: found.floor[None] * share for module, found in left.items()}

    def visit(use: Use, rows: Rows) -> None:
        if rows.one_hot:
            weight = unit_weights(network.module, use.unit)[use.matrix]
            for f, fmt in measured_pairs(use.unit, formats):
                made = study.renderings(use.unit, fmt)[use.matrix]
                table[position[use.unit.name], f] += squared_output_error(made, weight, rows)
        elif use.module in left:
            squares[use.module] = squares[use.module] + sum64((rows.x @ left[use.module].mixing).square(), 1)
        elif use.module not in site:
            before = squares.get(use.module, 0.0)
            squares[use.module] = before + sum64(rows.x.square(), 1)

    with watch_inputs(network, batch, units, visit):
        run(network, batch)
    for use in uses(network, units):
        found = squares.get(site.get(use.module, use.module))
        for f, _ in measured_pairs(use.unit, formats):
            if found is not None and (use.module, f) in costs:
                table[position[use.unit.name], f] += float((costs[use.module, f] * found).sum())
    return table
