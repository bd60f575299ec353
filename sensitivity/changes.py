"""The change dW = W_format - W of a unit, in the shapes in which estimators take it, and how large it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels.float64 import as_float64, sum64
from ..kernels.layout import opened
from ..kernels.packing import PackedWeight
from ..kernels.reference import gather_rows
from .estimate import empty_table, measured_pairs
from .network import Network
from .probe import Rows
from .progress import Progress, silent
from .render import Rendered, Renderings, rendered_slices, rendered_transposed, unit_weights
from .report import Floats
from .study import Study
from .units import Unit


def part_changes(
    made: Rendered, weight: Tensor, parts: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[int, slice, Tensor]]:
    """(part, outputs of that part, dW transposed), each dW (in_per_part, outputs) in `dtype` and small enough for the cache.

    A grouped convolution has several parts, everything else one.
    """
    width = len(weight) // parts  # outputs of a part
    for some, delta in rendered_slices(made, weight, dtype):
        for part in range(some.start // width, -(-some.stop // width)):
            first, last = max(some.start, part * width), min(some.stop, (part + 1) * width)
            yield part, slice(first - part * width, last - part * width), delta[:, first - some.start : last - some.start]


def row_changes(made: Rendered, weight: Tensor, ids: Tensor) -> Tensor:
    """dW[ids] of an embedding lookup, float32 (ids, width)."""
    rendered = gather_rows(opened(made), ids) if isinstance(made, PackedWeight) else made[ids].float()
    return rendered - weight[ids]


def squared_changes(network: Network, renderings: Renderings, units: Sequence[Unit], formats: Sequence[str]) -> Floats:
    """||dW||^2 over all matrices of a unit, (units, formats), NaN where a unit does not admit a format."""
    table = empty_table(units, formats)
    for u, unit in enumerate(units):
        weights = unit_weights(network.module, unit)
        for f, fmt in measured_pairs(unit, formats):
            pairs = zip(renderings(unit, fmt), weights, strict=True)
            table[u, f] = sum(
                float(as_float64(delta).square().sum()) for made, weight in pairs for _, delta in rendered_slices(made, weight)
            )
    return table


def relative_errors(study: Study, progress: Progress = silent) -> Floats:
    """D of all units and formats, (units, formats), over all matrices of a unit together.

    Zero at a unit's own format and for a unit whose weights are all zero, NaN where a unit does not admit the format.
    """
    units, network = study.units, study.network
    table = empty_table(units, study.formats)
    for u, unit in enumerate(units):
        progress("estimate", u, len(units))
        energy = sum(float(as_float64(weight).square().sum()) for weight in unit_weights(network.module, unit))
        table[u] = squared_changes(network, study.renderings, [unit], study.formats)[0] / (energy or 1.0)
    progress("estimate", len(units), len(units))
    return table


def weight_damage(study: Study) -> Floats:
    """Number of weights x relative weight error, (units, formats)."""
    sizes = np.array([unit.parameters for unit in study.units], dtype=np.float64)
    return sizes[:, None] * relative_errors(study)


def squared_output_error(made: Rendered, weight: Tensor, rows: Rows) -> float:
    """sum over rows of ||dW x_r||^2."""
    if rows.one_hot:
        return float(as_float64(row_changes(made, weight, rows.x)).square().sum())
    delta = rendered_transposed(made) - weight.T
    columns = delta.view(delta.shape[0], len(rows.x), -1).transpose(0, 1)  # (parts, in, out_per_part)
    return float(sum64((rows.x @ columns).square()))
