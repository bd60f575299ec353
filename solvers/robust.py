"""Losses are measured, and measurements are noisy: how sure is a choice, what does caution choose, which tables can be true.

Each loss is taken for a normal variable with the table's entry for its mean and a standard error, all independent of each
other. A table of another kind (one calibration set for all, say) has errors in common, which differences do not feel; then
give the standard errors of the differences to the item's option chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Bools, Floats, Ints
from .certificate import scaled
from .problem import ChoiceProblem, recompute

NODES = 12  # of Gauss and Legendre's rule on each panel
REACH = 9.0  # standard errors: beyond, a normal variable has less than 1e-18 of its mass
PANELS = 12  # of the range, where no rival asks for more
STEP = np.array([-8.0, -5.0, -2.5, 0.0, 2.5, 5.0, 8.0])  # panels end here around a rival's mean, in its standard errors
POINTS_AT_ONCE = 2**20  # nodes held in memory


def probability_right(problem: ChoiceProblem, stderr: npt.ArrayLike, choice: Ints, multipliers: Sequence[Fraction]) -> Floats:
    """Probability (n,) that the option chosen for each item is the one to choose, at given prices.

    For item i with the option j, and v_k = loss[i, k] + sum_q lambda_q a[q, i, k] known to the standard errors s_k:

        P_i = integral of  f_j(t) prod over k != j of (1 - F_k(t))  dt,     F_k, f_k: distribution and density of N(v_k, s_k^2)

    the probability that no allowed option has a smaller sum of loss and priced cost. `stderr` (n, m) >= 0 in units of
    loss, read where allowed. `multipliers`: one a row, in scaled loss a unit of cost, as certificates hold them. An entry
    without error counts as it stands, and one as good as another as right. By quadrature, deterministic, to about 1e-13.

    A low value names an item whose losses are worth measuring again. It speaks of one item at these prices; the prices
    themselves move little with the noise of one item among many.

    Raises ValueError when the shapes do not fit, or a standard error is negative or not finite.
    """
    errors = _errors(problem, stderr)
    recompute(problem, choice)  # refuses what is no choice
    tables = scaled(problem)
    if len(multipliers) != len(tables.rows):
        raise ValueError(f"{len(tables.rows)} multipliers are needed, one a row, not {len(multipliers)}")
    prices = [float(multiplier / tables.scale) for multiplier in multipliers]
    items = np.arange(problem.items)
    priced = tables.rows.priced(problem.loss, prices)
    ahead = priced - priced[items, choice][:, None]
    rival = problem.allowed.copy()
    rival[items, choice] = False
    ahead[~rival] = np.inf
    own, others = errors[items, choice], np.where(rival, errors, 0.0)
    right = np.ones(problem.items)
    exact = (own == 0) | ~rival.any(axis=1)
    right[exact] = _survives(ahead[exact], others[exact]).prod(axis=1)
    noisy = np.flatnonzero(~exact)
    at_once = max(1, POINTS_AT_ONCE // (NODES * (PANELS + len(STEP) * errors.shape[1])))
    for first in range(0, len(noisy), at_once):
        part = noisy[first : first + at_once]
        # In units of the chosen option's standard error.
        right[part] = _integral(ahead[part] / own[part, None], others[part] / own[part, None])
    return np.clip(right, 0.0, 1.0)


def _survives(ahead: Floats, error: Floats) -> Floats:
    """Probability that a variable of mean `ahead` and standard error `error` is not below zero."""
    from scipy.special import ndtr

    sure = error == 0
    likely: Floats = ndtr(np.divide(ahead, error, out=np.zeros(ahead.shape), where=~sure))
    return np.where(sure, ahead >= 0, likely)


def _integral(ahead: Floats, error: Floats) -> Floats:
    """Expectation (n,) over a standard normal z that all rivals, of mean `ahead` (n, m) and `error` (n, m), are not below z.

    The integrand is smooth but for a step at each rival's mean, as wide as its error: panels are cut there, and a rival
    without error ends the range.
    """
    from scipy.special import ndtr

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    sure = error == 0
    near = ~sure & (ahead < REACH * (1 + error))  # the others are never below z, but for less than 1e-18
    end = np.clip(np.where(sure, ahead, np.inf).min(axis=1), -REACH, REACH)
    even = np.broadcast_to(np.linspace(-REACH, REACH, PANELS + 1), (len(ahead), PANELS + 1))
    steep = near & (error < 1)
    steps = np.where(steep, ahead, -REACH)[:, :, None] + np.where(steep, error, 0.0)[:, :, None] * STEP
    cuts = np.hstack([even, steps.reshape(len(ahead), -1)])
    cuts = np.sort(np.clip(cuts, -REACH, end[:, None]), axis=1)
    item, panel = np.nonzero(np.diff(cuts, axis=1) > 0)
    half = (cuts[item, panel + 1] - cuts[item, panel])[:, None] / 2
    z = cuts[item, panel][:, None] + half * (1 + nodes)
    value = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * half * weights
    for rival in range(ahead.shape[1]):
        on = np.flatnonzero(near[item, rival])
        value[on] *= ndtr((ahead[item[on], rival, None] - z[on]) / error[item[on], rival, None])
    total = np.zeros(len(ahead))
    np.add.at(total, item, value.sum(axis=1))
    return total


def pessimistic(problem: ChoiceProblem, stderr: npt.ArrayLike, *, quantile: float = 0.9) -> ChoiceProblem:
    """The problem with each loss at a quantile of its distribution: loss + z stderr, where z is the normal quantile.

    A solver given this prefers what is known well to what may only look good. `stderr` (n, m) >= 0 in units of loss, read
    where allowed; `quantile` from 0.5, which changes nothing, to below 1. The sum of quantiles is no quantile of the sum:
    independent errors partly cancel, so the total loss of a choice lies below its pessimistic total more surely than that.

    Raises ValueError when the shape does not fit, a standard error is negative or not finite, or the quantile is outside.
    """
    if not 0.5 <= quantile < 1:
        raise ValueError(f"quantile must be at least 0.5 and below 1, not {quantile}")
    return replace(problem, loss=problem.loss + NormalDist().inv_cdf(quantile) * _errors(problem, stderr))


def _errors(problem: ChoiceProblem, stderr: npt.ArrayLike) -> Floats:
    """Standard errors (n, m), zeros where nothing is allowed."""
    given = np.asarray(stderr, dtype=np.float64)
    if given.shape != problem.loss.shape:
        raise ValueError(f"stderr must have the shape {problem.loss.shape} of loss, not {given.shape}")
    errors = np.where(problem.allowed, given, 0.0)
    wrong = ~np.isfinite(errors) | (errors < 0)
    if wrong.any():
        item, option = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise ValueError(f"the standard error of item {item}, option {option} is {given[item, option]}; it must be finite, >= 0")
    return errors


@dataclass(frozen=True, eq=False)
class Repair:
    """What `monotone` changed: entries (`item[k]`, `option[k]`) `before` and `after`, all (k,), by item and option."""

    item: Ints
    option: Ints
    before: Floats
    after: Floats

    def __len__(self) -> int:
        return len(self.item)

    @property
    def items(self) -> int:
        """How many items have an entry that was changed."""
        return len(np.unique(self.item))


def monotone(
    loss: npt.ArrayLike, cost: npt.ArrayLike, allowed: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[Floats, Repair]:
    """The nearest losses (n, m) that do not rise with cost: noise alone makes a dearer option of a nested kind look worse.

    Within each item, over its allowed options, sum of weights * (after - before)^2 is least subject to
    after[j] >= after[k] wherever cost[j] < cost[k] (isotonic regression by pooling adjacent violators; Ayer et al. 1955,
    Barlow et al. 1972). `cost` (n, m) of one resource, `allowed` (n, m) bool; `weights` (n, m) > 0, 1 / stderr^2 where
    standard errors are known, infinity for entries known exactly, which then yield to each other only.

    Options of equal cost have no order: neither is a refinement of the other, and both may stand as measured. Each must
    only lie between the cheaper and the dearer ones. So they are taken by falling loss, which is optimal (Kruskal's primary
    approach to ties). Pools become the weighted mean of their members; all other entries stay as they are, bit for bit, and
    a second repair finds nothing.

    An option that is truly worse for more bits, as a broken quantizer is, looks the same as noise: read the report.
    Entries that are not allowed are neither read nor changed. Raises ValueError when shapes do not fit, or a loss is not
    finite, or a weight is not above zero, where allowed.
    """
    before, spent = np.asarray(loss, dtype=np.float64), np.asarray(cost)
    mask: Bools = np.asarray(allowed)
    trust = np.ones(before.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if before.ndim != 2 or not before.shape == spent.shape == mask.shape == trust.shape or mask.dtype != np.bool_:
        shapes = f"{before.shape}, {spent.shape}, {mask.shape}, {trust.shape}"
        raise ValueError(f"loss, cost, allowed (bool) and weights must be tables (items, options) of one shape, not {shapes}")
    if not np.isfinite(before[mask]).all():
        raise ValueError("losses must be finite where allowed; mark an undefined pair as not allowed instead")
    if not np.all(trust[mask] > 0):
        raise ValueError("weights must be > 0 where allowed; an option that nobody measured is better not allowed")
    after = before.copy()
    for item in np.flatnonzero(_rises(before, spent, mask)).tolist():
        options = np.flatnonzero(mask[item])
        options = options[np.lexsort((-before[item, options], spent[item, options]))]
        after[item, options] = _pooled(before[item, options].tolist(), trust[item, options].tolist())
    where = np.nonzero((after != before) & mask)
    return after, Repair(where[0], where[1], before[where], after[where])


def _rises(loss: Floats, cost: npt.NDArray[Any], allowed: Bools) -> Bools:
    """Which items (n,) lose more on an allowed option than on a cheaper one."""
    rises = np.zeros(len(loss), dtype=np.bool_)
    for option in range(loss.shape[1]):
        dearer = (cost > cost[:, option, None]) & (loss > loss[:, option, None]) & allowed
        rises |= dearer.any(axis=1) & allowed[:, option]
    return rises


def _pooled(values: list[float], weights: list[float]) -> list[float]:
    """The nearest sequence that does not rise: while a pool's mean is above that of the one before it, the two become one."""
    pools: list[tuple[list[int], float]] = []
    for place, value in enumerate(values):
        members, mean = [place], value
        while pools and pools[-1][1] < mean:
            members = pools.pop()[0] + members
            mean = _mean([values[k] for k in members], [weights[k] for k in members])
        pools.append((members, mean))
    return [mean for members, mean in pools for _ in members]


def _mean(values: list[float], weights: list[float]) -> float:
    """Weighted mean; values of infinite weight outweigh all others and count alike among themselves."""
    if math.inf in weights:
        weights = [float(weight == math.inf) for weight in weights]
    largest = max(weights)
    mean = math.fsum(value * (weight / largest) for value, weight in zip(values, weights, strict=True))
    mean /= math.fsum(weight / largest for weight in weights)
    return min(max(mean, min(values)), max(values))
