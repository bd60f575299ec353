from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bitplan.solvers import Status, brute_force, core, segment_dp
from bitplan.solvers.segment_dp import Segmentation, saq_tables, segment
from problems import make, random_problem, worked

# methods_core.md, section 4.6: four blocks of 64 dimensions.
VARIANCE = np.repeat([20, 6, 1.5, 0.3], 64)
WORKED = [
    (1.0, [(128, 2), (128, 0)], 531.2, 320),
    (1.5, [(128, 3), (128, 0)], 323.2, 448),
    (2.0, [(128, 4), (128, 0)], 219.2, 576),
    (4.0, [(192, 5), (64, 0)], 74.2, 1024),
]


@pytest.mark.parametrize("prefer_fewer", [0.0, 0.001, 0.01])
@pytest.mark.parametrize(("mean", "lengths", "error", "spent"), WORKED)
def test_the_worked_example(mean: float, lengths: list[tuple[int, int]], error: float, spent: int, prefer_fewer: float) -> None:
    most = 256 // 64 if mean < 2 else 256 // 128
    found = segment(*saq_tables(VARIANCE), int(mean * 256) + 64, max_segments=most, prefer_fewer=prefer_fewer)
    assert [(64 * (stop - start), option) for start, stop, option in found.segments] == lengths  # option b is b bits
    assert found.loss == pytest.approx(error, rel=1e-15)
    assert found.cost <= int(mean * 256) + 64
    assert found.cost == spent


def test_a_third_segment_would_be_worth_its_overhead() -> None:
    """SAQ allows two segments at 4 bits; without that rule 26 + 12 + 19.2 is found, by the same arithmetic."""
    found = segment(*saq_tables(VARIANCE), 4 * 256 + 64, prefer_fewer=0.01)
    assert (found.segments, found.cost) == (((0, 2, 6), (2, 3, 3), (3, 4, 0)), 1088)
    assert found.loss == pytest.approx(57.2, rel=1e-15)


def by_trying(
    loss: np.ndarray, cost: np.ndarray, overhead: np.ndarray, allowed: np.ndarray, limit: int, most: int
) -> dict[int, float]:
    """The least loss for each number of segments up to `most` that has one within the limit: all choices, cut in all ways.

    Where neighbours take one option they may stand in one segment or two; fewer is never worse, so one is what counts.
    """
    items, options = loss.shape
    best: dict[int, float] = {}
    rows = np.arange(items)
    for picks in itertools.product(range(options), repeat=items):
        choice = np.array(picks)
        if not allowed[rows, choice].all():
            continue
        starts = [i for i in range(items) if i == 0 or choice[i] != choice[i - 1]]
        spent = int(cost[rows, choice].sum() + overhead[choice[starts]].sum())
        if spent <= limit and len(starts) <= most:
            best[len(starts)] = min(best.get(len(starts), math.inf), float(loss[rows, choice].sum()))
    return best


def hold(found: Segmentation, loss: np.ndarray, cost: np.ndarray, overhead: np.ndarray, allowed: np.ndarray, limit: int) -> None:
    assert [start for start, _, _ in found.segments] == [0, *[stop for _, stop, _ in found.segments[:-1]]]
    assert found.segments[-1][1] == len(loss)
    assert all(start < stop for start, stop, _ in found.segments)
    assert all(one[2] != other[2] for one, other in itertools.pairwise(found.segments))
    pairs = [(item, option) for start, stop, option in found.segments for item in range(start, stop)]
    assert all(allowed[pair] for pair in pairs)
    assert found.loss == sum(loss[pair] for pair in pairs)
    assert found.cost == sum(cost[pair] for pair in pairs) + sum(overhead[option] for _, _, option in found.segments)
    assert found.cost <= limit


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_every_segmentation_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, options = 1 + seed % 6, 1 + seed % 4
    unit = int(rng.integers(1, 4))
    loss = rng.integers(0, 40, (items, options)).astype(float)
    cost, overhead = unit * rng.integers(0, 9, (items, options)), unit * rng.integers(0, 7, options)
    allowed = rng.random(loss.shape) > 0.15
    allowed[np.arange(items), rng.integers(0, options, items)] = True
    cheapest = int(np.where(allowed, cost, 99).min(axis=1).sum())
    limit = cheapest + int(rng.integers(0, 1 + cost.max(axis=1).sum() - cheapest + 2 * overhead.max()))
    for most in {1, 2, items}:
        for share in (0.0, 0.3):
            best = by_trying(loss, cost, overhead, allowed, limit, most)
            if not best:
                with pytest.raises(ValueError, match=r"is below what the cheapest|too few for what is allowed"):
                    segment(loss, cost, overhead, limit, allowed=allowed, max_segments=most, prefer_fewer=share)
                continue
            found = segment(loss, cost, overhead, limit, allowed=allowed, max_segments=most, prefer_fewer=share)
            hold(found, loss, cost, overhead, allowed, limit)
            kept = min(best)
            for number in sorted(best):
                kept = number if best[number] < (1 - share) * best[kept] else kept
            assert (len(found.segments), found.loss) == (kept, best[kept])
    if best := by_trying(loss, cost, overhead, allowed, limit, items):
        found = segment(loss, cost, overhead, limit, allowed=allowed)
        hold(found, loss, cost, overhead, allowed, limit)
        assert found.loss == min(best.values())


def test_the_cheapest_segments_are_the_smallest_limit() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        loss, cost, overhead = rng.random((5, 3)), rng.integers(1, 20, (5, 3)), rng.integers(0, 15, 3)
        with pytest.raises(ValueError, match="below what the cheapest segments cost") as refused:
            segment(loss, cost, overhead, 0)
        least = int(str(refused.value).partition("cost, ")[2].partition(";")[0])
        assert segment(loss, cost, overhead, least).cost == least
        with pytest.raises(ValueError, match=f"cost, {least};"):
            segment(loss, cost, overhead, least - 1)


def test_an_overhead_makes_segments_longer() -> None:
    loss = np.exp(-np.arange(64) / 10)[:, None] * 2.0 ** -np.arange(2, 7)
    cost = np.tile(np.arange(2, 7), (64, 1))
    numbers = [len(segment(loss, cost, np.full(5, overhead), 64 * 4 + overhead).segments) for overhead in (0, 2, 1000)]
    assert numbers[0] > numbers[1] > numbers[2] == 1
    assert len(segment(loss, cost, np.full(5, 2), 258, max_segments=3).segments) <= 3


def test_saq_tables() -> None:
    loss, cost, overhead = saq_tables([4.0, 2.0, 1.0], bits=(0, 1, 3), block=2)
    assert loss.tolist() == [[6.0, 3.0, 0.75], [1.0, 0.5, 0.125]]
    assert cost.tolist() == [[0, 2, 6], [0, 2, 6]]
    assert overhead.tolist() == [0, 64, 64]
    assert saq_tables(VARIANCE)[0].shape == (4, 14)
    for variance, bits, block in (([-1.0], (1,), 1), ([np.nan], (1,), 1), ([], (1,), 1), ([1.0], (-1,), 1), ([1.0], (1,), 0)):
        with pytest.raises(ValueError, match=r"must be a list of finite|at least one dimension"):
            saq_tables(variance, bits, block)


def test_vectors_of_1536_dimensions() -> None:
    """The size of the largest published data; falling variances give falling bits."""
    loss, cost, overhead = saq_tables(np.exp(-np.arange(1536) / 200))
    found = segment(loss, cost, overhead, 4 * 1536 + 64)
    options = [option for _, _, option in found.segments]
    assert options == sorted(options, reverse=True)
    assert len(options) > 2
    single = segment(loss, cost, overhead, 4 * 1536 + 64, max_segments=1)
    assert single.segments == ((0, 24, 4),)
    assert found.loss < 0.7 * single.loss


def test_misuse_is_refused() -> None:
    loss, cost = np.ones((2, 2)), np.ones((2, 2), dtype=int)
    for overhead in ([1], [1, -1], [0.5, 1.0]):
        with pytest.raises(ValueError, match="overhead must be 2 whole numbers"):
            segment(loss, cost, overhead, 9)
    for others in ({"max_segments": 0}, {"prefer_fewer": 1.0}, {"prefer_fewer": -0.1}):
        with pytest.raises(ValueError, match="max_segments is at least 1"):
            segment(loss, cost, [0, 0], 9, **others)
    with pytest.raises(ValueError, match="whole numbers"):
        segment(loss, cost + 0.5, [0, 0], 9)
    with pytest.raises(ValueError, match="1 segments are too few"):
        segment(loss, cost, [0, 0], 9, allowed=np.eye(2, dtype=np.bool_), max_segments=1)
    with pytest.raises(ValueError, match="fewer segments"):
        segment(loss, [[0, 10**9], [1, 10**9]], [0, 0], 10**9)


# --- The budget problem.


@pytest.mark.parametrize("family", ["wild", "whole", "linear", "near"])
def test_agrees_with_core(family: str) -> None:
    for seed in range(6):
        problem = random_problem(family, seed, 40, 5)
        solution, best = segment_dp.solve(problem), core.solve(problem)
        assert (solution.status, best.status) == (Status.OPTIMAL, Status.OPTIMAL)
        assert solution.loss == pytest.approx(best.loss, rel=1e-12)
        assert np.all(solution.cost <= problem.limit)
        assert solution.certificate is not None
        assert best.certificate is not None
        assert solution.certificate.lower_bound == best.certificate.lower_bound


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_every_choice_tried(seed: int) -> None:
    problem = random_problem(("whole", "near", "wild")[seed % 3], seed, 1 + seed % 7, 1 + seed % 5)
    solution = segment_dp.solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.loss == pytest.approx(brute_force(problem).loss, rel=1e-15)


def test_units_are_the_common_divisor_above_the_cheapest() -> None:
    """Terabytes, but only four multiples of one number above an odd start."""
    cost = 12345 + 2**40 * np.array([[0, 1, 3], [0, 2, 3]])
    problem = make([[9.0, 4.0, 0.0], [9.0, 3.0, 1.0]], cost, 2 * 12345 + 3 * 2**40 + 77)
    solution = segment_dp.solve(problem)
    assert (solution.loss, solution.status) == (7.0, Status.OPTIMAL)
    assert solution.loss == brute_force(problem).loss


def test_too_many_units_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"table of 120 x 8 entries for each of \d+ units of cost is too large; .* use `core`"):
        segment_dp.solve(random_problem("wide", 99, 120, 8))


def test_time_limit_infeasible_and_other_problems() -> None:
    solution = segment_dp.solve(random_problem("near", 0, 60, 8), time_limit=0.0)
    assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert solution.choice is not None
    solution = segment_dp.solve(worked(7))
    assert (solution.status, solution.smallest_limit, solution.choice) == (Status.INFEASIBLE, (8,), None)
    with pytest.raises(ValueError, match="use `best`"):
        segment_dp.solve(make([[1.0]], [[[1]], [[1]]], 1, 1))
