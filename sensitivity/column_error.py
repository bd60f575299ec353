"""Squared weight errors column by column, and metrics that weigh each column by what is known of its input.

The column of input j in a matrix (out, in) makes e_j = sum_i dW_ij^2, dW = W_format - W. If the inputs of a unit were
uncorrelated, the squared error of its output would be sum_j e_j sum_r x_rj^2: a weighted sum of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.float64 import as_float64, home
from .changes import part_changes, squared_output_error
from .estimate import empty_table, measured_pairs
from .flow import Passage
from .probe import Rows, Use
from .render import Rendered
from .report import Floats


def column_errors(made: Rendered, weight: Tensor, parts: int = 1) -> Tensor:
    """e_j of `weight` (out, in), float64 (parts, in); part p of a grouped convolution is its p-th share of the outputs."""
    errors = torch.zeros(parts, weight.shape[1], dtype=torch.float64, device=home(weight.device))
    for part, _, delta in part_changes(made, weight, parts):
        errors[part] += as_float64(delta).square().sum(dim=1)
    return errors


def weighted_columns(passage: Passage, weigh: Callable[[Rows], Tensor]) -> Floats:
    """sum over uses and columns of weigh(rows)_j e_j for one batch, (units, formats); `weigh` gives (parts, in).

    An embedding's lookups count the squared error of the rows they read: one-hot inputs are uncorrelated.
    """
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    table = empty_table(passage.units, passage.formats)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").flatten(1)
        weights = torch.empty(0) if rows.one_hot else as_float64(weigh(rows))
        for f, fmt in measured_pairs(use.unit, passage.formats):
            made = passage.renderings(use.unit, fmt)[use.matrix]
            if rows.one_hot:
                table[position[use.unit.name], f] += squared_output_error(made, weight, rows)
            else:
                table[position[use.unit.name], f] += float((weights * column_errors(made, weight, len(weights))).sum())

    passage.drive(visit)
    return table
