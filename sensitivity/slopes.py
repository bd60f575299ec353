"""Slopes: how fast the objective changes as a unit moves towards a format, g^T dW x, for every row or every example.

dW = W_format - W, x_r the input of row r and g_r the objective's gradient at the unit's output of that row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .changes import part_changes, row_changes
from .estimate import empty_table, measured_pairs
from .flow import Passage
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
    slopes: dict[tuple[str, int], Tensor] = {}  # (unit, format) -> one slope a row or example, uses summed

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").flatten(1)
        gradients = _example_gradients(rows, g, passage.examples) if by_example and not rows.one_hot else None
        for f, fmt in measured_pairs(use.unit, passage.formats):
            made = passage.renderings(use.unit, fmt)[use.matrix]
            if rows.one_hot:
                slope = (row_changes(made, weight, rows.x) * g[0]).sum(-1)
                if by_example:
                    slope = torch.zeros(passage.examples).index_add_(0, rows.example, slope)
            elif gradients is None:
                slope = _row_slope(made, weight, rows, g)
            else:
                slope = _example_slope(made, weight, gradients)
            key = (use.unit.name, f)
            slopes[key] = slopes[key] + slope if key in slopes else slope

    passage.drive(visit)
    table = empty_table(passage.units, passage.formats)
    for u, unit in enumerate(passage.units):
        for f, _ in measured_pairs(unit, passage.formats):
            slope = slopes.get((unit.name, f))  # an expert that no token reached has none
            table[u, f] = 0.0 if slope is None else float(slope.double().square().sum())
    return table


def _row_slope(made: Rendered, weight: Tensor, rows: Rows, g: Tensor) -> Tensor:
    """g_r^T dW x_r for each row."""
    slope = torch.zeros(rows.x.shape[1])
    for part, outputs, delta in part_changes(made, weight, len(rows.x)):
        slope += (rows.x[part] @ delta).mul_(g[part, :, outputs]).sum(dim=1)
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
