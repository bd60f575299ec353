from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, brute_force, core, dp_error, hull, scaled
from bitplan.solvers.dp_error import Rounding, least_cost_by_error
from problems import FAMILIES, KNOWN, Known, make, random_problem, worked

# methods_core.md, section 9.4: three layers, sizes and errors; the reference takes the middle option of each.
SIZES = np.array([[10, 20, 40], [100, 200, 400], [30, 60, 120]])
ERRORS = np.array([[0.8, 0.4, 0.1], [1.0, 0.5, 0.2], [0.6, 0.3, 0.1]])
REFERENCE = math.fsum(ERRORS[:, 1])


def answer(limit: float, buckets: int, rounding: Rounding) -> tuple[tuple[int, ...], int]:
    found = least_cost_by_error(SIZES, ERRORS, limit, buckets, rounding)
    assert found is not None
    return tuple(found.choice.tolist()), found.size


@pytest.mark.parametrize("buckets", [10, 20, 100, 1000, 10_000])
def test_the_published_rounding_returns_more_than_the_plan_its_limit_was_read_off(buckets: int) -> None:
    assert SIZES[:, 1].sum() == 280
    assert answer(REFERENCE, buckets, "ceil") == ((2, 1, 1), 300)


@pytest.mark.parametrize("buckets", [20, 100, 10_000])
def test_the_worked_example_with_room_to_spare(buckets: int) -> None:
    assert answer(1.05 * REFERENCE, buckets, "ceil") == ((2, 0, 2), 260)
    assert answer(1.25 * REFERENCE, buckets, "ceil") == ((2, 0, 1), 200)


@pytest.mark.parametrize("buckets", [20, 100, 1000, 10_000])
def test_the_mistake_is_mended(buckets: int) -> None:
    assert answer(REFERENCE, buckets, "fixed") == ((2, 0, 2), 260)


@pytest.mark.parametrize("buckets", [100, 10_000])
def test_fixed_with_room_to_spare(buckets: int) -> None:
    assert answer(1.05 * REFERENCE, buckets, "fixed") == ((2, 0, 2), 260)
    assert answer(1.25 * REFERENCE, buckets, "fixed") == ((2, 0, 1), 200)


def least_size(sizes: np.ndarray, errors: np.ndarray, limit: float) -> int | None:
    """By trying every choice, the errors added up exactly, those that meet the limit in decimals included."""
    exact = [[Fraction(lost) for lost in row] for row in errors.tolist()]
    most = Fraction(limit) + Fraction(len(sizes) + 1, 2) * Fraction(math.ulp(limit))
    fitting = [
        sum(int(row[pick]) for row, pick in zip(sizes, picks, strict=True))
        for picks in itertools.product(range(sizes.shape[1]), repeat=len(sizes))
        if sum(row[pick] for row, pick in zip(exact, picks, strict=True)) <= most
    ]
    return min(fitting, default=None)


@pytest.mark.parametrize("buckets", [5, 30, 400])
def test_floor_is_no_larger_and_ceil_no_smaller_than_the_least_size(buckets: int) -> None:
    rng = np.random.default_rng(buckets)
    lost_by_ceil = beyond_by_floor = 0
    for seed in range(60):
        items = 1 + seed % 6
        sizes = rng.integers(1, 100, (items, 3))
        errors = rng.integers(0, 40, (items, 3)) / 10
        uniform = np.full(items, 1)
        limit = math.fsum(errors[:, 1])
        true = least_size(sizes, errors, limit)
        assert true is not None
        floor, ceil, fixed = (least_cost_by_error(sizes, errors, limit, buckets, how) for how in ("floor", "ceil", "fixed"))
        assert floor is not None
        assert floor.size == floor.bound <= true
        assert floor.error <= limit * (1 + items / buckets) * (1 + 1e-12)
        beyond_by_floor += not floor.within
        if ceil is None or ceil.size > sizes[:, 1].sum():
            lost_by_ceil += 1
        if ceil is not None:
            assert ceil.within
            assert ceil.bound <= true <= ceil.size
        less = least_size(sizes, errors, limit * (1 - items / buckets)) if items < buckets else None
        if fixed is not None:
            assert fixed.within
            assert fixed.bound <= true <= fixed.size
        for other in (less, ceil.size if ceil else None):
            assert other is None or (fixed is not None and fixed.size <= other)
        safe = least_cost_by_error(sizes, errors, limit, buckets, known=uniform)
        assert safe is not None
        assert safe.within
        assert true <= safe.size <= sizes[:, 1].sum()
    assert lost_by_ceil > 0
    assert (beyond_by_floor > 0) == (buckets < 400)  # a bucket of less than a tenth tells all sums of tenths apart


def test_decimals_count_as_they_are_written() -> None:
    found = least_cost_by_error([[1, 9], [1, 9]], [[0.8, 0.0], [0.4, 0.0]], 1.2)
    assert found is not None
    assert (found.size, found.error, found.within) == (2, math.fsum([0.8, 0.4]), True)


def test_an_error_above_the_limit_never_fits_and_a_limit_of_zero_is_one() -> None:
    assert least_cost_by_error([[1, 9]], [[5.0, 1.0]], 2.0, 10, "ceil") is not None
    found = [least_cost_by_error([[1, 9]], [[5.0, 1.0]], 2.0, 10, how) for how in ("ceil", "floor", "fixed")]
    assert [one.size if one else None for one in found] == [9, 9, 9]
    zero = least_cost_by_error([[1, 9], [1, 4]], [[5.0, 0.0], [1e-300, 0.0]], 0.0)
    assert zero is not None
    assert (zero.size, zero.error) == (13, 0.0)
    assert least_cost_by_error([[1, 9]], [[5.0, 1.0]], 0.5) is None


@pytest.mark.parametrize(
    ("size", "error", "limit", "buckets", "message"),
    [
        ([[1, 2]], [[1.0]], 1.0, 10, "one shape"),
        ([[1.5]], [[1.0]], 1.0, 10, "whole numbers"),
        ([[1]], [[-1.0]], 1.0, 10, "at least 0"),
        ([[1]], [[1.0]], math.inf, 10, "at least 0"),
        ([[1]], [[1.0]], 1.0, 0, "buckets must be"),
    ],
)
def test_misuse_is_refused(size: list[list[float]], error: list[list[float]], limit: float, buckets: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        least_cost_by_error(size, error, limit, buckets)


# --- The budget problem.


def losses(problem: ChoiceProblem, choice: np.ndarray | None) -> int:
    assert choice is not None
    return int(scaled(problem).loss[np.arange(problem.items), choice].sum())


def stated(reason: str) -> float:
    match = re.search(r"epsilon = ([^:]+):", reason)
    assert match is not None
    return float(match[1])


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_known_answers(known: Known) -> None:
    solution = dp_error.solve(known.problem)
    assert solution.choice is not None
    assert np.all(solution.cost <= known.problem.limit)
    assert known.loss - known.tolerance <= solution.loss
    if solution.status is Status.OPTIMAL:
        assert solution.loss <= known.loss + known.tolerance
    else:
        assert solution.loss <= known.loss * (1 + stated(solution.reason))


@pytest.mark.parametrize("buckets", [3, 50, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_within_the_stated_factor_and_never_worse_than_hull(family: str, buckets: int) -> None:
    for seed in range(8):
        problem = random_problem(family, seed, 30, 5)
        best, found = core.solve(problem), dp_error.solve(problem, buckets=buckets)
        assert np.all(found.cost <= problem.limit)
        assert best.status is Status.OPTIMAL
        assert losses(problem, best.choice) <= losses(problem, found.choice) <= losses(problem, hull.solve(problem).choice)
        if found.status is Status.OPTIMAL:
            assert losses(problem, found.choice) == losses(problem, best.choice)
        else:
            assert found.status is Status.FEASIBLE
            assert found.loss <= best.loss * (1 + stated(found.reason))


def test_whole_losses_are_solved_exactly() -> None:
    proofs = set()
    for seed in range(40):
        problem = random_problem("whole", seed, 1 + seed % 7, 2 + seed % 4)
        solution = dp_error.solve(problem)
        assert (solution.status, solution.loss) == (Status.OPTIMAL, brute_force(problem).loss)
        proofs.add(solution.proof)
    assert proofs == {"search", "multipliers"}


def test_more_buckets_come_nearer_and_beat_hull() -> None:
    """The budgets of the textbook instance that need options off the hull, and a harder one."""
    assert [dp_error.solve(worked(limit)).loss for limit in (11, 13, 15)] == pytest.approx([7.5, 5.7, 3.0], abs=1e-12)
    problem = random_problem("near", 8, 60, 8)
    found = [dp_error.solve(problem, buckets=buckets) for buckets in (10, 100_000)]
    assert found[1].loss == core.solve(problem).loss < hull.solve(problem).loss
    assert found[1].loss <= found[0].loss


def test_the_table_stays_within_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem("near", 8, 60, 8)
    sizes = []
    for _ in range(2):
        buckets, items = (int(part) for part in re.findall(r"(\d+) (?:buckets|items)", dp_error.solve(problem).reason))
        sizes.append(buckets * items)
        monkeypatch.setattr(dp_error, "ROOM", 4000)
    assert sizes[0] > 9000 * 10
    assert 0 < sizes[1] <= 4000


def test_a_time_limit_of_nothing_gives_the_answer_of_hull() -> None:
    problem = random_problem("layers", 12, 60, 7)
    solution = dp_error.solve(problem, time_limit=0.0)
    assert (solution.status, solution.loss) == (Status.LIMIT, hull.solve(problem).loss)


def test_too_small_a_limit_and_other_problems() -> None:
    solution = dp_error.solve(worked(7))
    assert (solution.status, solution.smallest_limit, solution.choice) == (Status.INFEASIBLE, (8,), None)
    with pytest.raises(ValueError, match="use `best`"):
        dp_error.solve(make([[1.0]], [[[1]], [[1]]], 1, 1))
    with pytest.raises(ValueError, match="at least one bucket"):
        dp_error.solve(worked(9), buckets=0)
