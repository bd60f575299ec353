"""The latency formula's constants from measured points: least squares, one shape held out to see what they are worth.

    t = t0 + max_r ideal_r / eta_r            r: bytes, instructions, floating-point operations

With it settled which roof r is over each point, this is linear in t0 and the 1 / eta. So: guess the etas, assign each point to
the roof that the guess puts highest, solve for t0 and the 1 / eta, and again until the assignment stays. That ends in a
local optimum, so it starts from several guesses, and the best end counts. Errors are relative: a product of a microsecond
counts as much as one of a millisecond. A roof that is over no point keeps its constant, unless that would lift it over one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .roofline import DENSE, DeviceModel, Point, formula, terms

NAMES = ("eta_q", "eta_i", "eta_tc", "eta_dense", "eta_dense_tc")
GUESSES = tuple(itertools.product((0.25, 0.5, 1.0), repeat=2))  # of the etas of bytes and of instructions
ROUNDS = 50
Floats = npt.NDArray[np.float64]


def fit(start: DeviceModel, points: Sequence[Point], held_out: tuple[int, int] | None = None) -> DeviceModel:
    """`start` with t0 and the etas fitted to `points` of all shapes but one, with `fit_error` at that one, and the points.

    `held_out` (outputs, inputs) is the middle shape by size unless given. The rates, c and block_rows stay as they are.
    Raises ValueError when no shape is left to fit, or the one to hold out was not measured.
    """
    shapes = sorted({point.shape for point in points}, key=lambda shape: (shape[0] * shape[1], shape))
    if len(shapes) < 2:
        raise ValueError(f"a fit needs points of two shapes or more, one of them to be held out, not {len(shapes)}; measure more")
    apart = held_out or shapes[len(shapes) // 2]
    if apart not in shapes:
        raise ValueError(f"shape {apart} was not measured, so it cannot be held out; name one of {shapes}")
    seen = [point for point in points if point.shape != apart]
    ideal = _ideal(start, seen)
    seconds = np.array([point.seconds for point in seen])
    before = np.array([start.constants.t0, *(1 / getattr(start.constants, name) for name in NAMES)])
    ends = [_descend(ideal, seconds, guess) for guess in _guesses(before)]
    best = min(ends, key=lambda end: _misfit(ideal, seconds, end))
    best = _kept(ideal, seconds, best, before)
    changed = zip(NAMES, best[1:], before[1:], strict=True)
    fitted: dict[str, Any] = {name: float(1 / value) for name, value, old in changed if value != old}
    constants = replace(start.constants, t0=float(best[0]), **fitted)
    errors = [formula(point, constants) / point.seconds - 1 for point in points if point.shape == apart]
    return replace(start, constants=constants, fit_error=float(np.sqrt(np.mean(np.square(errors)))), points=tuple(points))


def _ideal(start: DeviceModel, points: Sequence[Point]) -> Floats:
    """(points, 5): the seconds of each roof at the device's full rate, in the order of NAMES; zero where it is none."""
    table = np.zeros((len(points), len(NAMES)))
    for row, point in zip(table, points, strict=True):
        counted, issued, operations = terms(point, start.constants)
        if point.bits in DENSE:
            row[3:] = counted, operations
        else:
            row[:3] = counted, issued, operations
    return table


def _guesses(before: Floats) -> list[Floats]:
    """The constants as they were, and with other etas of bytes and instructions."""
    guesses = [before]
    for of_bytes, of_instructions in GUESSES:
        other = before.copy()
        other[[1, 4]], other[2] = 1 / of_bytes, 1 / of_instructions
        guesses.append(other)
    return guesses


def _descend(ideal: Floats, seconds: Floats, guess: Floats) -> Floats:
    """(t0, 1 / eta, ...) at the end of the descent from `guess`."""
    at = best = guess
    previous: npt.NDArray[np.int64] | None = None
    for _ in range(ROUNDS):
        highest = (ideal * at[1:]).argmax(axis=1)
        if previous is not None and np.array_equal(highest, previous):
            break
        previous = highest
        at = _solve(ideal, seconds, highest, at)
        if _misfit(ideal, seconds, at) < _misfit(ideal, seconds, best):
            best = at
    return best


def _kept(ideal: Floats, seconds: Floats, end: Floats, before: Floats) -> Floats:
    """`end` with each constant as it was `before` where that fits no worse: roofs that are over no point."""
    for place in range(1, len(end)):
        other = end.copy()
        other[place] = before[place]
        if _misfit(ideal, seconds, other) <= _misfit(ideal, seconds, end):
            end = other
    return end


def _solve(ideal: Floats, seconds: Floats, highest: npt.NDArray[np.int64], at: Floats) -> Floats:
    """Least squares of relative errors, point p under roof `highest[p]`; what comes out below zero keeps its value in `at`."""
    rows = np.arange(len(seconds))
    design = np.zeros((len(seconds), len(at)))
    design[:, 0] = 1
    design[rows, 1 + highest] = ideal[rows, highest]
    design /= seconds[:, None]
    free: npt.NDArray[np.bool_] = np.array(design.any(axis=0))
    while True:
        target = 1 - design[:, ~free] @ at[~free]
        scale = np.linalg.norm(design[:, free], axis=0)
        solved = np.linalg.lstsq(design[:, free] / scale, target, rcond=None)[0] / scale
        places = np.flatnonzero(free)
        bad = places[(solved < 0) | ((solved == 0) & (places > 0))]
        if not len(bad):
            result = at.copy()
            result[free] = solved
            return result
        free[bad] = False


def _misfit(ideal: Floats, seconds: Floats, at: Floats) -> float:
    """Sum of squared relative errors."""
    return float(np.square((at[0] + (ideal * at[1:]).max(axis=1)) / seconds - 1).sum())
