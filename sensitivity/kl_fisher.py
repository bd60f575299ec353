"""kl_fisher: the second-order estimate of the divergence that storing one unit in a format causes in the model's output.

Let L be the sum of log p(y_s) over all predictions s, labels y_s drawn from the model's own distributions, x_t the input
of a unit at row t, g_t = dL/d(output at t), dW = W_format - W. To second order the divergence of the model's output is

    causal language models    1/(2N) sum_t (g_t^T dW x_t)^2               nats per token
    one output an example     1/(2N) sum_examples (sum_t g_t^T dW x_t)^2  nats (or cosine distance) per example

with N the number of predictions: half the Fisher information of the output along dW. The first form neglects the covariance
between positions of a sequence. Uses of a tied weight and the matrices of an expert are summed before squaring. Models
without a softmax head take L = z . u, u the unit pooled vector and z standard normal, which makes it half the squared
length of the change of u, the cosine distance.

All units and formats come from one forward and one backward pass a batch; weights need no gradient, so the backward pass
costs as much as the forward one. The data must not be what the weights were rounded on: GPTQ fits those tokens, and the
estimate would flatter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..kernels.packing import PackedWeight
from ..kernels.reference import gather_rows
from .calibration import Part, assert_disjoint
from .estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from .network import Batch, Network, predictions, run, sampled_objective
from .probe import Rows, Use, watch_gradients
from .progress import Progress, Steps
from .render import Rendered, Renderings, rendered_slices
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
    """The estimated divergence for every unit and format, with standard errors over batches.

    Raises ValueError without data, or when it shares examples with the data of the rendering.
    """
    if part is None:
        raise ValueError("kl_fisher needs calibration data; give some, or use weight_error")
    if renderings.part is not None:
        assert_disjoint(part, renderings.part)
    sums, counts = [], []
    for index, batch in enumerate(part.batches):
        progress("estimate", index, len(part.batches))
        sums.append(steps(f"batch {index}", partial(_batch_sums, network, renderings, batch, formats, seed + index)))
        counts.append(2 * predictions(network, batch))
    progress("estimate", len(part.batches), len(part.batches))
    return ratio_estimate(sums, counts, network.quantity)


def _batch_sums(network: Network, renderings: Renderings, batch: Batch, formats: Sequence[str], seed: int) -> Floats:
    """sum of squared directional derivatives over one batch, (units, formats)."""
    units = network.inventory.units
    by_token = network.inventory.outputs == "tokens"
    examples = len(next(iter(batch.values())))
    slopes: dict[tuple[str, int], Tensor] = {}  # (unit, format) -> g^T dW x for each row or example, uses summed

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = network.module.get_parameter(f"{use.module}.weight").flatten(1)
        gradients = None if by_token or rows.one_hot else _example_gradients(rows, g, examples)
        for f, fmt in measured_pairs(use.unit, formats):
            made = renderings(use.unit, fmt)[use.matrix]
            if rows.one_hot:
                slope = _lookup_slope(made, weight, rows, g)
                if not by_token:
                    slope = torch.zeros(examples).index_add_(0, rows.example, slope)
            elif gradients is None:
                slope = _row_slope(made, weight, rows, g)
            else:
                slope = _example_slope(made, weight, gradients)
            key = (use.unit.name, f)
            slopes[key] = slopes[key] + slope if key in slopes else slope

    with watch_gradients(network, batch, units, visit):
        output = run(network, batch)
        objective = sampled_objective(network, output, batch, torch.Generator().manual_seed(seed))
        del output
        if objective.requires_grad:
            objective.backward()  # type: ignore[no-untyped-call]
    table = empty_table(units, formats)
    for u, unit in enumerate(units):
        for f, _ in measured_pairs(unit, formats):
            slope = slopes.get((unit.name, f))  # an expert that no token reached has none
            table[u, f] = 0.0 if slope is None else float(slope.double().square().sum())
    return table


def _row_slope(made: Rendered, weight: Tensor, rows: Rows, g: Tensor) -> Tensor:
    """g_r^T dW x_r for each row."""
    slope = torch.zeros(rows.x.shape[1])
    width = g.shape[2]  # outputs of a part
    for some, delta in rendered_slices(made, weight):
        for part in range(some.start // width, -(-some.stop // width)):
            first, last = max(some.start, part * width), min(some.stop, (part + 1) * width)
            moved = rows.x[part] @ delta[:, first - some.start : last - some.start]
            slope += moved.mul_(g[part, :, first - part * width : last - part * width]).sum(dim=1)
    return slope


def _example_slope(made: Rendered, weight: Tensor, gradients: Tensor) -> Tensor:
    """<dW, gradient of an example> for each of the `gradients` (examples, in, out)."""
    slope = torch.zeros(len(gradients))
    for some, delta in rendered_slices(made, weight):
        slope += (gradients[:, :, some] * delta).sum(dim=(1, 2))
    return slope


def _example_gradients(rows: Rows, g: Tensor, examples: int) -> Tensor:
    """sum over an example's rows of x g^T, (examples, in, out): one product serves all formats."""
    result = []
    for example in range(examples):
        mine = rows.example == example
        part = rows.x[:, mine].transpose(1, 2) @ g[:, mine]  # (parts, in, out_per_part)
        result.append(part.transpose(0, 1).flatten(1))
    return torch.stack(result)


def _lookup_slope(made: Rendered, weight: Tensor, rows: Rows, g: Tensor) -> Tensor:
    """g_r . dW[id_r] for each row of an embedding lookup."""
    rendered = gather_rows(made, rows.x) if isinstance(made, PackedWeight) else made[rows.x].float()
    return ((rendered - weight[rows.x]) * g[0]).sum(-1)
