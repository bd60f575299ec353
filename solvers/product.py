"""Weighted product of two sums: the least loss^r time^(1 - r) of all choices within the limits (MxMoE, arXiv 2505.05799).

    L(x) = sum_i loss[i, x_i],    T(x) = sum_i time[i, x_i],    minimise L^r T^(1 - r),    0 <= r <= 1

The product is concave where L and T are not negative, so its least over the finitely many points (L, T) is at a corner of their
convex hull, and every corner that counts is the least w L + v T for some weights: a problem like any other. The corners are
found by halving (Cohon 1978): between two neighbours, ask with the weights of the line through them; what lies below the line
is a new corner. Each answer also proves a *line*, w L + v T >= bound for every choice, so between two neighbours no point lies
below the corner where their lines meet, and where the product there is no better than the best known, nothing is asked. The
lines alone prove a lower bound for the product (`product_bound`).

MxMoE gives gate and up of an expert one scheme: tie them first with `merge_tied`, the times as well.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from . import best
from .arrays import Bools, Floats, Ints
from .problem import ChoiceProblem, Proof, Solution, Status, recompute

CLOSE = 1e-9  # relative: a product and a bound this near count as one
CLOSE_LINE = 1e-12  # relative: what lies no further below a line counts as on it
COARSE = 2.0**20  # times the best sum: a table with larger entries is solved again without them
ROUNDING = 2.0**-50  # relative, of sums of correctly rounded products
TIE = 2.0**-40  # weight of the other objective where only ties are to be broken


@dataclass(frozen=True)
class Line:
    """`loss_weight` L + `time_weight` T >= `bound` for every choice within the limits; `proof` as in Solution."""

    loss_weight: float
    time_weight: float
    bound: float
    proof: Proof


@dataclass(frozen=True, eq=False)
class ProductSolution:
    """`choice` (n,) with its sums `loss` L, `time` T, its `product` L^r T^(1 - r), and its `cost` (r,).

    No choice has a product below `lower_bound`, which is `product_bound(lines, r)`. OPTIMAL where the two are within 1e-9
    of each other. `solution` is the answer that the choice comes from, to weighted sums, or the one that there is none.
    """

    choice: Ints | None
    loss: float
    time: float
    product: float
    cost: Ints
    lower_bound: float
    lines: tuple[Line, ...]
    status: Status
    solution: Solution
    seconds: float


def solve_product(
    problem: ChoiceProblem, time: npt.ArrayLike, weight: float, *, time_limit: float | None = None
) -> ProductSolution:
    """The choice of least L^weight T^(1 - weight), for any rows and rules; `time` (n, m) numbers >= 0 in any unit.

    With weight 1 the least loss, with 0 the least time; of equals the least of the other (equals up to 2^-40 of the sum, and
    never at the expense of the first). Every weighted sum is left to `best`. INFEASIBLE where no choice keeps the rows,
    LIMIT when `time_limit` (seconds) cut the work short, with the best choice so far, where there is one.

    Raises ValueError for a weight outside 0 .. 1, or times of another shape, negative or not finite where allowed.
    """
    started = clock.perf_counter()
    search = _Search.of(problem, time, weight, math.inf if time_limit is None else started + time_limit)
    # For weights of 0 and 1 the other end has no say.
    ends = [search.ask(*weights) for weights in ([(1.0, 0.0)] * (weight > 0) + [(0.0, 1.0)] * (weight < 1))]
    if any(end.choice is None for end in ends):
        solution = next(end.solution for end in ends if end.choice is None)
        nothing = np.zeros(problem.resources, dtype=np.int64)
        seconds = clock.perf_counter() - started
        return ProductSolution(
            None, math.inf, math.inf, math.inf, nothing, 0.0, tuple(search.lines), solution.status, solution, seconds
        )
    stopped = search.between(*ends) if len(ends) == 2 else search.break_ties(ends[0])
    point = min(search.points, key=lambda point: search.rank(point))
    bound = min(product_bound(search.lines, weight), point.product)
    status = Status.OPTIMAL if point.product - bound <= CLOSE * point.product else Status.LIMIT if stopped else Status.FEASIBLE
    assert point.choice is not None
    return ProductSolution(
        point.choice,
        point.loss,
        point.time,
        point.product,
        recompute(problem, point.choice)[1],
        bound,
        tuple(search.lines),
        status,
        point.solution,
        clock.perf_counter() - started,
    )


def product_bound(lines: Sequence[Line], weight: float) -> float:
    """The least L^weight T^(1 - weight) over L, T >= 0 above all lines: at a corner, as the product is concave.

    Corners are found in exact arithmetic, by intersecting every two lines; O(k^3) for k lines.
    """
    edges = [(Fraction(line.loss_weight), Fraction(line.time_weight), Fraction(line.bound)) for line in lines]
    edges += [(Fraction(1), Fraction(0), Fraction(0)), (Fraction(0), Fraction(1), Fraction(0))]
    least = math.inf
    for (w, v, bound), (other_w, other_v, other_bound) in itertools.combinations(edges, 2):
        determinant = w * other_v - v * other_w
        if determinant:
            loss = (bound * other_v - v * other_bound) / determinant
            time = (w * other_bound - bound * other_w) / determinant
            if all(a * loss + b * time >= c for a, b, c in edges):
                least = min(least, _product(float(loss), float(time), weight))
    return least * (1 - ROUNDING)


@dataclass(frozen=True, eq=False)
class _Point:
    """What came of asking for the least weighted sum: a choice and its sums; and the line it proves."""

    choice: Ints | None
    loss: float
    time: float
    product: float
    line: Line
    solution: Solution


@dataclass(frozen=True, eq=False)
class _Search:
    """Everything asked so far. `lines` and `points` grow with every question."""

    problem: ChoiceProblem
    time: Floats
    weight: float
    deadline: float
    lines: list[Line]
    points: list[_Point]

    @classmethod
    def of(cls, problem: ChoiceProblem, time: npt.ArrayLike, weight: float, deadline: float) -> _Search:
        if not 0 <= weight <= 1:
            raise ValueError(f"the weight of the loss must lie in 0 .. 1, not {weight}")
        times = np.asarray(time)
        if times.shape != problem.loss.shape:
            raise ValueError(f"time must have the shape {problem.loss.shape} of loss, not {times.shape}")
        times = np.where(problem.allowed, times, 0).astype(np.float64)
        wrong = ~np.isfinite(times) | (times < 0)
        if wrong.any():
            item, option = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise ValueError(f"the time of item {item}, option {option} is {times[item, option]}; times are finite and >= 0")
        return cls(problem, times, weight, deadline, [], [])

    def ask(self, loss_weight: float, time_weight: float) -> _Point:
        """The least loss_weight L + time_weight T."""
        solution = self._least(loss_weight * self.problem.loss + time_weight * self.time)
        if solution.choice is None or solution.certificate is None:
            return _Point(None, math.inf, math.inf, math.inf, Line(loss_weight, time_weight, 0.0, "bound"), solution)
        certificate = solution.certificate
        proven = certificate.lower_bound + (certificate.gap if solution.proof == "search" else 0)
        # Off by half a unit an item where losses were rounded to integers, and by float64's rounding of the weighted table.
        bound = float((proven - Fraction(self.problem.items, 2)) / certificate.loss_scale) * (1 - ROUNDING)
        line = Line(loss_weight, time_weight, max(0.0, bound), solution.proof)
        rows = np.arange(self.problem.items)
        loss = math.fsum(self.problem.loss[rows, solution.choice].tolist())
        time = math.fsum(self.time[rows, solution.choice].tolist())
        point = _Point(solution.choice, loss, time, _product(loss, time, self.weight), line, solution)
        self.lines.append(line)
        self.points.append(point)
        return point

    def _least(self, weighted: Floats) -> Solution:
        """The choice of least `weighted` (n, m), by `best`.

        Where some entries are far larger than that choice's sum, it is done again without the options that weigh more than
        the whole choice, as no better one takes them: the integers that losses are rounded to are finer then. With 1e6 in a
        table whose best sum is 1e-5, the bound would be good to 1e-6 only.
        """
        solution = self._best(weighted, self.problem.allowed)
        if solution.choice is not None and weighted.max() > COARSE * solution.loss:
            finer = self._best(weighted, self.problem.allowed & (weighted <= solution.loss * (1 + CLOSE)))
            return finer if finer.loss <= solution.loss else solution
        return solution

    def _best(self, weighted: Floats, allowed: Bools) -> Solution:
        left = None if self.deadline == math.inf else max(0.0, self.deadline - clock.perf_counter())
        return best.solve(replace(self.problem, loss=weighted, allowed=allowed), time_limit=left)

    def between(self, first: _Point, last: _Point) -> bool:
        """Ask for all corners that count between the ends; returns whether the deadline came before that."""
        number = itertools.count()  # so that equals in the heap need no comparison of points
        chords = [(self._corner(first, last), next(number), first, last)]
        while chords:
            corner, _, above, below = heapq.heappop(chords)
            if corner >= min(point.product for point in self.points) * (1 - CLOSE):
                return False
            dearer, faster = below.loss - above.loss, above.time - below.time
            if dearer <= 0 or faster <= 0:
                continue
            if clock.perf_counter() >= self.deadline:
                return True
            # The weights of the line through both, in a unit that makes the largest entry of the weighted table about one.
            unit = max(float(self.problem.loss.max()) / dearer, float(self.time.max()) / faster)
            loss_weight, time_weight = 1 / dearer / unit, 1 / faster / unit
            found = self.ask(loss_weight, time_weight)
            line = loss_weight * above.loss + time_weight * above.time
            if found.choice is not None and loss_weight * found.loss + time_weight * found.time < line * (1 - CLOSE_LINE):
                for pair in ((above, found), (found, below)):
                    heapq.heappush(chords, (self._corner(*pair), next(number), *pair))
        return False

    def break_ties(self, point: _Point) -> bool:
        """Ask once more with a little of the other objective; returns whether the deadline came before that."""
        if clock.perf_counter() >= self.deadline:
            return True
        ours, others = (point.loss, point.time) if self.weight else (point.time, point.loss)
        table = self.problem.loss if self.weight else self.time
        little = TIE * (ours or float(table.max()) or 1.0) / (others or 1.0)
        self.ask(*((1.0, little) if self.weight else (little, 1.0)))
        return False

    def rank(self, point: _Point) -> tuple[float, float]:
        """Smaller is better: the product, then the other objective where that says nothing."""
        return point.product, point.time if self.weight else point.loss

    def _corner(self, above: _Point, below: _Point) -> float:
        """The product where the lines of two neighbours meet: no point between them has a smaller one."""
        a, b = above.line, below.line
        determinant = a.loss_weight * b.time_weight - a.time_weight * b.loss_weight
        if determinant == 0:
            return 0.0
        loss = (a.bound * b.time_weight - a.time_weight * b.bound) / determinant
        time = (a.loss_weight * b.bound - a.bound * b.loss_weight) / determinant
        return _product(max(0.0, loss), max(0.0, time), self.weight)


def _product(loss: float, time: float, weight: float) -> float:
    return float(loss**weight * time ** (1 - weight))
