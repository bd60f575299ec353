"""Seconds of one product y = x @ W.T on a device: what was measured there, else the formula of `roofline.py`.

Where a device's table holds points of the same bits and rows, the time is a point's own (same shape), or linear in
outputs * inputs between its neighbours. Outside the sizes that were measured the formula is used, not a line.

A narrower weight is not always faster: 3 bits are unpacked as 2 + 1 and may take longer than 4. Nothing here hides that.
A device without points has never been measured: its constants are guesses, and `DeviceModel.measured` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .latency_json import device_model
from .roofline import DENSE, Constants, DeviceModel, Point, formula, group_inputs

Kind = Literal["measured", "interpolated", "modelled"]


@dataclass(frozen=True)
class Estimate:
    """`measured`: a point of this very product; `interpolated`: between points of the same bits and rows; `modelled`: by the
    formula."""

    seconds: float
    kind: Kind


def latency(
    outputs: int, inputs: int, bits: int, rows: int = 1, device: str | DeviceModel = "h100", group_size: int | None = 128
) -> float:
    """Seconds of one product; see `estimate`.

    >>> 1e6 * latency(4096, 4096, 16) > 1e6 * latency(4096, 4096, 4)
    True
    """
    return estimate(outputs, inputs, bits, rows, device, group_size).seconds


def estimate(
    outputs: int, inputs: int, bits: int, rows: int = 1, device: str | DeviceModel = "h100", group_size: int | None = 128
) -> Estimate:
    """Seconds of (rows, inputs) @ (outputs, inputs).T, and how they are known. `group_size` None: one group a row.

    Points of another group size are carried over by the formula's ratio of the two. Raises KeyError for an unknown device,
    ValueError for a product that cannot be.
    """
    model = device_model(device) if isinstance(device, str) else device
    if bits not in (*range(1, 9), *DENSE):
        raise ValueError(f"weights of {bits} bits have no latency; ask for 1 to 8, 16 or 32")
    if min(outputs, inputs, rows) < 1 or (group_size is not None and group_size < 1):
        raise ValueError(f"a product of {rows} rows with a {outputs} x {inputs} matrix in groups of {group_size} cannot be timed")
    asked = Point("", outputs, inputs, bits, rows, 0.0, group_size)
    same = [point for point in model.points if (point.bits, point.rows) == (bits, rows)]
    here = [point for point in same if point.shape == asked.shape]
    exact = [point.seconds for point in here if _grouped_alike(point, group_size)]
    if exact:
        return Estimate(min(exact), "measured")
    sizes: dict[int, float] = {}
    for point in here or same:
        size, seconds = point.outputs * point.inputs, _carried(point, group_size, model.constants)
        sizes[size] = min(seconds, sizes.get(size, seconds))
    size = outputs * inputs
    if sizes and min(sizes) <= size <= max(sizes):
        known = sorted(sizes)
        return Estimate(float(np.interp(size, known, [sizes[at] for at in known])), "interpolated")
    return Estimate(formula(asked, model.constants), "modelled")


def _grouped_alike(point: Point, group_size: int | None) -> bool:
    return point.bits in DENSE or group_inputs(point, group_size) == group_inputs(point, point.group_size)


def _carried(point: Point, group_size: int | None, constants: Constants) -> float:
    """The seconds of `point`, had it been measured with groups of `group_size`."""
    if _grouped_alike(point, group_size):
        return point.seconds
    return point.seconds * formula(replace(point, group_size=group_size), constants) / formula(point, constants)
