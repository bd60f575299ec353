from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, ChoiceProblem, brute_force, count, recompute
from bitplan.solvers.fusions import FusedChoice, Fusion, fuse, undominated
from problems import _LATENCY, _SENSITIVITY, TRELLIS, Ints, make, qpalette_latency, random_problem

MATRICES = "qkvougd"


def qpalette(limit: int) -> tuple[ChoiceProblem, list[Fusion]]:
    """Block 0 of LLaMA-3.1-8B: seven matrices on their own, and the sets that may run as one."""
    loss = np.outer([_SENSITIVITY[matrix] for matrix in MATRICES], list(TRELLIS.values()))
    fusions = [
        Fusion(tuple(MATRICES.index(matrix) for matrix in name), np.array([spent]))
        for name, spent in _LATENCY.items()
        if len(name) > 1
    ]
    return make(loss, [_LATENCY[matrix] for matrix in MATRICES], limit), fusions


def spent(problem: ChoiceProblem, fusions: list[Fusion], fused: FusedChoice) -> Ints:
    """The cost (r,) of a choice and what runs as one, added up from the first tables."""
    alone = set(range(problem.items)) - {member for part in fused.fused for member in part}
    total = sum((problem.cost[:, item, fused.choice[item]] for item in alone), np.zeros(problem.resources, dtype=np.int64))
    for part in fused.fused:
        table = next(fusion.cost for fusion in fusions if sorted(fusion.members) == sorted(part))
        assert len(set(fused.choice[list(part)].tolist())) == 1
        total = total + table[:, fused.choice[part[0]]]
    return total


@pytest.mark.parametrize(
    ("limit", "bits", "loss", "cost"),
    [(9000, {"q": 4, "k": 4, "v": 4, "u": 2, "g": 2, "o": 4, "d": 2}, 0.00932218, 8939),
     (10000, {"q": 4, "k": 4, "v": 4, "u": 2, "g": 2, "o": 4, "d": 3}, 0.00486808, 9702)],
)  # fmt: skip
def test_the_worked_examples_of_qpalette(limit: int, bits: dict[str, int], loss: float, cost: int) -> None:
    problem, fusions = qpalette(limit)
    composite, invert = fuse(problem, fusions)
    solution = SOLVERS["best"](composite)
    assert solution.choice is not None
    assert solution.loss == pytest.approx(loss, abs=2e-7)
    assert solution.cost.tolist() == [cost]
    fused = invert(solution.choice)
    assert {matrix: int(fused.choice[item]) + 2 for item, matrix in enumerate(MATRICES)} == bits
    assert {"".join(MATRICES[member] for member in part) for part in fused.fused} == {"qkv", "ug"}
    assert recompute(problem, fused.choice)[0] == pytest.approx(solution.loss, rel=1e-14)


@pytest.mark.parametrize("limit", range(8300, 16000, 400))
def test_the_same_answers_as_the_table_written_by_hand(limit: int) -> None:
    problem, fusions = qpalette(limit)
    by_hand = qpalette_latency(limit, fused=True)
    assert SOLVERS["dp"](fuse(problem, fusions)[0]).loss == pytest.approx(SOLVERS["dp"](by_hand).loss, rel=1e-14)
    unfused = SOLVERS["dp"](qpalette_latency(limit, fused=False)).loss
    assert SOLVERS["dp"](fuse(problem, [])[0]).loss == pytest.approx(unfused, rel=1e-14)


def fusible(seed: int, resources: int) -> tuple[ChoiceProblem, list[Fusion]]:
    """Five items, of which 0, 2 and 3 may be fused pairwise and together, and 1 and 4; some options shut."""
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 30, (resources, 5, 3))
    allowed = rng.random((5, 3)) > 0.15
    allowed[:, 1] = True
    limit = cost[:, :, 1].sum(axis=1) - 8
    problem = make(rng.integers(0, 9, (5, 3)), cost, *limit.tolist(), allowed=allowed)
    fusions = []
    for members in ((2, 0), (0, 3), (3, 2), (0, 2, 3), (4, 1)):
        kernels = rng.random(3) > 0.2
        fusions.append(Fusion(members, np.maximum(1, cost[:, members].sum(axis=1) - rng.integers(-2, 12, 3)), kernels))
    return problem, fusions


def every_way(problem: ChoiceProblem, fusions: list[Fusion]) -> list[tuple[float, FusedChoice]]:
    """Every choice with everything that it lets run as one: the yardstick."""
    found = []
    options = [np.flatnonzero(row).tolist() for row in problem.allowed]
    for choice in map(np.array, itertools.product(*options)):
        able = [
            tuple(sorted(fusion.members))
            for fusion in fusions
            if len(set(choice[list(fusion.members)].tolist())) == 1
            and (not fusion.allowed.size or fusion.allowed[choice[fusion.members[0]]])
        ]
        for size in range(len(able) + 1):
            for parts in itertools.combinations(able, size):
                together = [member for part in parts for member in part]
                if len(set(together)) == len(together):
                    found.append((recompute(problem, choice)[0], FusedChoice(choice, parts)))
    return found


@pytest.mark.parametrize("resources", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_against_every_choice_and_partition(seed: int, resources: int) -> None:
    problem, fusions = fusible(seed, resources)
    composite, invert = fuse(problem, fusions)
    costs = [(loss, spent(problem, fusions, way)) for loss, way in every_way(problem, fusions)]
    least = min((loss for loss, cost in costs if np.all(cost <= problem.limit)), default=None)
    solution = SOLVERS["dp"](composite)
    if least is None:
        assert solution.choice is None
        return
    assert solution.choice is not None
    assert solution.loss == least
    fused = invert(solution.choice)
    assert problem.allowed[np.arange(5), fused.choice].all()
    assert spent(problem, fusions, fused).tolist() == solution.cost.tolist()
    assert recompute(problem, fused.choice)[0] == solution.loss


@pytest.mark.parametrize("seed", range(4))
def test_floors_and_rules_are_carried_over(seed: int) -> None:
    problem, fusions = fusible(seed, 1)
    rule = count((0, 2, 4), (0,), at_least=1, at_most=2)
    ruled = replace(problem, limit=problem.limit + 30, floor=problem.limit - 4, rules=(rule,))
    composite, invert = fuse(ruled, fusions)
    ways = [(loss, way, spent(ruled, fusions, way)) for loss, way in every_way(ruled, fusions)]
    within = [loss for loss, way, cost in ways if ruled.floor <= cost <= ruled.limit and rule.kept(way.choice)]
    solution = brute_force(composite)
    assert solution.choice is not None
    assert solution.loss == min(within)
    for choice in (
        np.where(composite.allowed, rank, -1).argmax(axis=1) for rank in np.random.default_rng(seed).random((9, 2, 1))
    ):
        assert composite.rules[0].total(choice) == rule.total(invert(choice).choice)


def test_three_members_make_n3_3n2_n_options() -> None:
    """With a floor nothing is dropped, so all of them can be counted."""
    rng = np.random.default_rng(0)
    problem = ChoiceProblem(
        rng.random((3, 32)), rng.integers(1, 99, (1, 3, 32)), np.array([99]), np.ones((3, 32), dtype=np.bool_), np.array([1])
    )
    fusions = [Fusion(members, rng.integers(1, 99, (1, 32))) for members in ((0, 1), (0, 2), (1, 2), (0, 1, 2))]
    composite, invert = fuse(problem, fusions)
    assert composite.loss.shape == (1, 35872)
    ways = {(invert(np.array([option])).fused, *invert(np.array([option])).choice.tolist()) for option in range(0, 35872, 7)}
    assert len(ways) == len(range(0, 35872, 7))
    free = replace(problem, floor=np.array([0]))
    kept = fuse(free, fusions)[0]
    assert kept.loss.shape[1] < 200
    for limit in range(10, 200, 19):
        here, there = (replace(each, limit=np.array([limit])) for each in (kept, replace(composite, floor=np.array([0]))))
        assert SOLVERS["dp"](here).loss == SOLVERS["dp"](there).loss


def test_items_that_no_fusion_names_keep_their_options() -> None:
    problem = random_problem("wild", 3, 6, 4)
    same, invert = fuse(problem, [])
    assert same.items == 6
    solution, straight = SOLVERS["best"](same), SOLVERS["best"](problem)
    assert solution.choice is not None
    assert straight.choice is not None
    assert invert(solution.choice).choice.tolist() == straight.choice.tolist()
    assert invert(solution.choice).fused == ()


def test_of_equals_the_one_without_fusion_stays() -> None:
    problem = make([[1.0], [2.0]], [[3], [4]], 9)
    composite, invert = fuse(problem, [Fusion((0, 1), np.array([[7]]))])
    assert composite.loss.tolist() == [[3.0]]
    assert invert(np.array([0])).fused == ()
    composite, invert = fuse(problem, [Fusion((0, 1), np.array([[6]]))])
    assert composite.cost.tolist() == [[[6]]]
    assert invert(np.array([0])).fused == ((0, 1),)


@pytest.mark.parametrize("resources", [1, 2, 3])
def test_the_undominated_are_those_that_nothing_beats(resources: int) -> None:
    rng = np.random.default_rng(resources)
    for _ in range(20):
        loss, cost = rng.integers(0, 6, 40).astype(np.float64), rng.integers(0, 6, (resources, 40))
        points = np.vstack([loss, cost]).T.tolist()
        expected = [
            k
            for k, point in enumerate(points)
            if not any(
                all(a <= b for a, b in zip(other, point, strict=True)) and (other != point or place < k)
                for place, other in enumerate(points)
            )
        ]
        assert undominated(loss, cost).tolist() == expected


def test_what_it_refuses() -> None:
    problem = make(np.zeros((3, 2)), np.zeros((3, 2), dtype=int), 0)
    table = np.ones((1, 2), dtype=np.int64)
    for members in ((0,), (0, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="joins two or more of the 3 items"):
            fuse(problem, [Fusion(members, table)])
    with pytest.raises(ValueError, match=r"\(0, 1\) is given twice"):
        fuse(problem, [Fusion((0, 1), table), Fusion((1, 0), table)])
    wrong: list[Any] = [np.ones((1, 3), dtype=np.int64), np.ones((1, 2)), -table]
    for cost in wrong:
        with pytest.raises(ValueError, match=r"whole numbers >= 0 of the shape \(1, 2\)"):
            fuse(problem, [Fusion((0, 1), cost)])
    with pytest.raises(ValueError, match="allowed of the fusion"):
        fuse(problem, [Fusion((0, 1), table, np.ones(3, dtype=np.bool_))])
    wide = ChoiceProblem(
        np.ones((3, 200)), np.ones((1, 3, 200), dtype=int), np.array([3]), np.ones((3, 200), dtype=np.bool_), np.array([1])
    )
    with pytest.raises(ValueError, match="fuse fewer, or thin them out"):
        fuse(wide, [Fusion((0, 1), np.ones((1, 200), dtype=np.int64)), Fusion((1, 2), np.ones((1, 200), dtype=np.int64))])
