"""adaquant: the squared output error that is left after a unit's rounding has been optimised for it, by AdaQuant.

For every unit and int format, with inputs x cached from the untouched network,

    minimise over W', s    sum_r ||(Q(W') - W) x_r||^2        Q(W')_ij = s (clamp(round(W'_ij / s) + zero, 0, 2^b - 1) - zero)

by Adam, rounding passed straight through (AdaQuant in CalibTIP, Hubara et al. 2020, arXiv 2006.10518). W' and the scales s drift
until codes change. It starts from W itself, rounded to nearest on the grid of the rendering: of the rendering only the
grid is used, and codes that GPTQ chose are not. The loss is 1/N sum_r ||(Q - W) x_r||^2, what `output_error` finds for an
ordinary rendering: the difference of the two says what reconstruction is worth to a unit. No plan stores these weights.

Differences from the source, which takes 1000 iterations, W at a rate of 1e-5 and ranges at 1e-3, inputs quantized as well:

* ITERATIONS are few, for a table has hundreds of entries: a matrix of 576 x 1536 takes about half a second on a core. Rates
  fall to zero meanwhile, and it stops early after PATIENCE iterations without gain.
* Rates are relative to the step of the grid: 1e-5 means nothing to one format or another, STEP_RATE the same to all.
* Biases are exact and zero points stay: whole numbers do not move within so few iterations.
* It is fitted on ROWS rows drawn from all batches and judged on as many others, so that a table does not flatter units that
  have more inputs than rows. Where that made things worse than the start, the start counts.

Formats of floats and tables of embeddings (tied heads with them) have nothing to optimise here: they count as rendered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.float64 import sum64
from ...kernels.packing import PackedWeight, unpack_zeros
from ..changes import squared_output_error
from ..estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from ..network import predictions, run
from ..probe import Rows, Use, uses, watch_inputs
from ..render import Rendered, unit_weights
from ..report import Floats
from ..study import Study
from ..units import Unit

ROWS = 256  # to fit, and as many to judge by, over all batches
ITERATIONS = 16
PATIENCE = 6
STEP_RATE = 0.01  # of a step of the grid, an iteration, at first
SCALE_RATE = 0.001  # of the scale
ENTRIES_AT_ONCE = 1 << 20  # of a matrix in the loop: bounds memory
MOMENTUM, MEMORY = 0.9, 0.999  # Adam's


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of the rows that a use was given in one batch: those to `fit`, (parts, rows, in), those to `judge` by, and how many rows
    each of the latter stands for."""

    fit: Tensor
    judge: Rows
    share: float


Known = list[tuple[Tensor, Inputs]]  # a tensor that a module received, and what was drawn of it


@torch.no_grad()
def estimate(study: Study) -> Estimate:
    """The reconstructed output error for every unit and format; one step each."""
    network, units, batches = study.network, study.units, study.data.batches
    total = len(batches) + len(units)
    cached: dict[str, dict[int, Inputs]] = {}  # module of a use -> batch -> rows
    looked_up: dict[str, dict[int, Rows]] = {}
    for index, batch in enumerate(batches):
        study.progress("estimate", index, total)
        generator = torch.Generator().manual_seed(study.seed + index)
        latest: Known = []  # matrices that are fed one tensor share its rows

        def visit(use: Use, rows: Rows, index: int = index, draw: torch.Generator = generator, known: Known = latest) -> None:
            if rows.one_hot:
                looked_up.setdefault(use.module, {})[index] = rows
                return
            if rows.x.shape[1] == 0:
                return
            inputs = next((found for source, found in known if source is rows.source), None)
            if inputs is None:
                inputs = _drawn(rows, -(-ROWS // len(batches)), draw)
            if not rows.conv:
                known.append((rows.source, inputs))
                del known[:-4]
            cached.setdefault(use.module, {})[index] = inputs

        with watch_inputs(network, batch, units, visit):
            run(network, batch)
    tables = np.stack([empty_table(units, study.formats)] * len(batches))
    for u, unit in enumerate(units):
        study.progress("estimate", len(batches) + u, total)
        for f, fmt in measured_pairs(unit, study.formats):
            compute = partial(_one, study, unit, fmt, cached, looked_up, len(batches))
            tables[:, u, f] = study.steps(f"{unit.name} {fmt}", compute)
    study.progress("estimate", total, total)
    counts = [predictions(network, batch) for batch in batches]
    return ratio_estimate(list(tables), counts, "squared output error after reconstruction")


def _drawn(rows: Rows, wanted: int, generator: torch.Generator) -> Inputs:
    """At most `wanted` of `rows` to fit, and as many others to judge by."""
    total = rows.x.shape[1]
    order = torch.randperm(total, generator=generator).to(rows.x.device)
    half = min(wanted, total // 2)
    held = order[half : half + min(wanted, total - half)]
    judge = Rows(rows.x[:, held], rows.example[held], rows.position[held], None, torch.empty(0), rows.conv)
    return Inputs(rows.x[:, order[:half]], judge, total / len(held))


@torch.no_grad()
def _one(
    study: Study,
    unit: Unit,
    fmt: str,
    cached: dict[str, dict[int, Inputs]],
    looked_up: dict[str, dict[int, Rows]],
    batches: int,
) -> Floats:
    """Squared output error of `unit` in `fmt` over the rows of each batch, (batches,)."""
    sums = np.zeros(batches)
    for use in uses(study.network, [unit]):
        made, weight = study.renderings(unit, fmt)[use.matrix], unit_weights(study.network.module, unit)[use.matrix]
        for index, rows in looked_up.get(use.module, {}).items():
            sums[index] += squared_output_error(made, weight, rows)
        found = cached.get(use.module, {})
        if not found:
            continue
        if isinstance(made, PackedWeight) and unit.kind != "embedding":
            start, best = reconstruct(weight, made, torch.cat([inputs.fit for inputs in found.values()], dim=1))
            judged = [_judged(found, weight, numbers) for numbers in (start, best)]
            errors = min(judged, key=lambda errors: sum(errors.values()))
        else:
            errors = _judged(found, weight, made)
        for index, error in errors.items():
            sums[index] += error
    return sums


def _judged(found: dict[int, Inputs], weight: Tensor, made: Rendered) -> dict[int, float]:
    """Squared output error of each batch with `made` for `weight` (out, in), from the rows to judge by."""
    return {index: inputs.share * squared_output_error(made, weight, inputs.judge) for index, inputs in found.items()}


def reconstruct(weight: Tensor, made: PackedWeight, x: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` (out, in) on the grid of `made`: rounded to nearest, and after optimising it for `x` (parts, rows, in).

    Both are the numbers of a format, float32 (out, in). Outputs have nothing to do with each other and are taken a few at a
    time, which bounds memory; a grouped convolution is small.
    """
    few = max(32, ENTRIES_AT_ONCE // weight.shape[1] // 32 * 32) if len(x) == 1 else len(weight)
    cuts = [(start, min(start + few, len(weight))) for start in range(0, len(weight), few)]
    found = [_reconstruct(weight[start:stop].T.contiguous(), made.outputs(start, stop), x) for start, stop in cuts]
    start, best = (torch.cat(slices, dim=1).T for slices in zip(*found, strict=True))
    return start, best


def _reconstruct(columns: Tensor, made: PackedWeight, x: Tensor) -> tuple[Tensor, Tensor]:
    inputs, levels = len(columns), 2**made.format.bits - 1
    group = torch.arange(inputs, device=columns.device) // (made.format.group_size or inputs)
    first_scale, zeros = made.scales.float(), unpack_zeros(made)
    zero = torch.full_like(columns, (levels + 1) // 2) if zeros is None else zeros.float()[group]
    latent = columns / first_scale[group]  # W' in steps of the first grid
    growth = torch.zeros_like(first_scale)  # log of scale / first scale
    latent_state, growth_state = (torch.zeros(2, *values.shape, device=x.device) for values in (latent, growth))
    start = best = torch.empty(0)
    least, since = float("inf"), 0
    for iteration in range(ITERATIONS + 1):
        scales = (first_scale * growth.exp()).half().float().clamp(min=2.0**-24)
        scale = scales[group]
        steps = (first_scale / scales)[group].mul_(latent)
        wanted = steps.round().add_(zero)
        codes = wanted.clamp(0, levels)
        inside = codes == wanted
        codes -= zero
        numbers = codes * scale
        change = x @ (numbers - columns).view(inputs, len(x), -1).transpose(0, 1)  # (parts, rows, out_per_part)
        error = float(sum64(change.square()))
        if iteration == 0:
            start = numbers
        if error < least:
            least, best, since = error, numbers, 0
        else:
            since += 1
        if iteration == ITERATIONS or since == PATIENCE or x.shape[1] == 0:
            break
        gradient = (x.transpose(1, 2) @ change).transpose(0, 1).reshape(columns.shape)  # half of it: Adam does not mind
        for_scale = codes.sub_(steps.mul_(inside)).mul_(scale).mul_(gradient)
        slope = torch.zeros_like(growth).index_add_(0, group, for_scale)
        left = 1 - iteration / ITERATIONS
        _adam(latent, gradient.mul_(inside), latent_state, STEP_RATE * left, iteration)
        _adam(growth, slope, growth_state, SCALE_RATE * left, iteration)
    return start, best


def _adam(values: Tensor, gradient: Tensor, state: Tensor, rate: float, iteration: int) -> None:
    """One step of Adam in place; `state` (2, ...) holds the running means of the gradient and of its square."""
    mean, square = state[0], state[1]
    mean.lerp_(gradient, 1 - MOMENTUM)
    square.mul_(MEMORY).addcmul_(gradient, gradient, value=1 - MEMORY)
    size = (1 - MEMORY ** (iteration + 1)) ** 0.5 / (1 - MOMENTUM ** (iteration + 1))
    values.addcdiv_(mean, square.sqrt().add_(torch.finfo(torch.float32).tiny), value=-rate * size)
