"""Slopes: how fast the objective changes as a unit moves towards a format, g^T dW x, for every row or every example.

dW = W_format - W, x_r the input of row r and g_r the objective's gradient at the unit's output of that row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.float64 import as_float64
from .changes import part_changes, row_changes
from .estimate import empty_table, measured_pairs
from .flow import Passage
from .half_products import factor_dtype
from .probe import Rows, Use
from .render import Rendered, rendered_slices
from .report import Floats


def token_slopes(passage: Passage) -> Floats:
    """sum over rows of (g_r^T dW x_r)^2, (units, formats); uses of a tied weight, and the matrices of an expert, are summed
    before squaring."""
    return _squared(passage, by_example=False)


def example_slopes(passage: Passage) -> Floats:
    """sum over examples of (sum over the example's rows of g_r^T dW x_r)^2, (units, formats)."""
    return _squared(passage, by_example=True)


def _squared(passage: Passage, *, by_example: bool) -> Floats:
    slopes: dict[str, Tensor] = {}  # unit -> (formats, rows or examples), uses summed

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").detach().flatten(1)
        rendered = [passage.renderings(use.unit, fmt)[use.matrix] for _, fmt in measured_pairs(use.unit, passage.formats)]
        if not rendered:
            return
        slope = use_slopes(rendered, weight, rows, g, passage.examples if by_example else None)
        slopes[use.unit.name] = slopes[use.unit.name] + slope if use.unit.name in slopes else slope

    passage.drive(visit)
    table = empty_table(passage.units, passage.formats)
    for u, unit in enumerate(passage.units):
        if unit.name in slopes:  # an expert that no token reached has none
            columns = [f for f, _ in measured_pairs(unit, passage.formats)]
            table[u, columns] = as_float64(slopes[unit.name]).square().sum(dim=1).cpu()
    return table


def use_slopes(rendered: Sequence[Rendered], weight: Tensor, rows: Rows, g: Tensor, examples: int | None) -> Tensor:
    """g_r^T dW x_r at one use, for each of the formats and rows, or summed over the rows of each of so many `examples`."""
    if examples is None:
        return _row_slopes(rendered, weight, rows, g)
    if not rows.one_hot:
        return _example_slopes(rendered, weight, _example_gradients(rows, g, examples))
    slopes = _row_slopes(rendered, weight, rows, g)
    return torch.zeros(len(rendered), examples, device=slopes.device).index_add_(1, rows.example, slopes)


def _row_slopes(rendered: Sequence[Rendered], weight: Tensor, rows: Rows, g: Tensor) -> Tensor:
    """g_r^T dW x_r for each of the formats and rows."""
    if rows.one_hot:
        return torch.stack([(row_changes(made, weight, rows.x) * g[0]).sum(-1) for made in rendered])
    slopes = torch.zeros(len(rendered), rows.x.shape[1], device=rows.x.device)
    dtype = factor_dtype(rows.x, weight)
    x, g = rows.x.to(dtype), g.to(dtype)
    weight = weight.T.contiguous().T  # changes are made transposed, once a format
    for slope, made in zip(slopes, rendered, strict=True):
        for part, outputs, delta in part_changes(made, weight, len(x), dtype):
            slope += torch.linalg.vecdot(x[part] @ delta, g[part, :, outputs])
    return slopes


def _example_slopes(rendered: Sequence[Rendered], weight: Tensor, gradients: Tensor) -> Tensor:
    """<dW, gradient of an example> for each of the formats and of the `gradients` (examples, in, out)."""
    slopes = torch.zeros(len(rendered), len(gradients), device=gradients.device)
    weight = weight.T.contiguous().T
    for slices in zip(*(rendered_slices(made, weight) for made in rendered), strict=True):
        deltas = torch.stack([delta.flatten() for _, delta in slices])  # one product for all formats reads the gradients once
        slopes += deltas @ gradients[:, :, slices[0][0]].flatten(1).T
    return slopes


def _example_gradients(rows: Rows, g: Tensor, examples: int) -> Tensor:
    """sum over an example's rows of x g^T, (examples, in, out): one product serves all formats."""
    result = []
    for example in range(examples):
        mine = rows.example == example
        part = rows.x[:, mine].transpose(1, 2) @ g[:, mine]  # (parts, in, out_per_part)
        result.append(part.transpose(0, 1).flatten(1))
    return torch.stack(result)
