from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bitplan.solvers import ChoiceProblem, Status
from bitplan.solvers.uniform import layer_order_fill, single_format, solve
from problems import make

BITS = np.array([2, 3, 4, 8])
LOSS = [[90.0, 40.0, 20.0, 1.0], [10.0, 5.0, 2.0, 0.1], [9.0, 4.0, 2.0, 0.1], [8.0, 3.0, 2.0, 0.1]]


def rivals(problem: ChoiceProblem) -> tuple[list[int] | None, list[int] | None]:
    single, fill = single_format(problem), layer_order_fill(problem)
    return None if single is None else single.tolist(), None if fill is None else fill.tolist()


def at(limit: int, allowed: npt.NDArray[np.bool_] | None = None) -> tuple[list[int] | None, list[int] | None]:
    return rivals(make(LOSS, np.outer([4, 1, 1, 1], BITS), limit, allowed=allowed))


@pytest.mark.parametrize(
    ("limit", "single", "fill"),
    [
        (13, None, None),
        (14, [0, 0, 0, 0], [0, 0, 0, 0]),
        (16, [0, 0, 0, 0], [0, 1, 1, 0]),  # the first would cost 4 more
        (18, [0, 0, 0, 0], [1, 0, 0, 0]),
        (20, [0, 0, 0, 0], [1, 1, 1, 0]),
        (21, [1, 1, 1, 1], [1, 1, 1, 1]),
        (27, [1, 1, 1, 1], [2, 2, 2, 1]),
        (48, [2, 2, 2, 2], [3, 3, 2, 2]),
        (56, [3, 3, 3, 3], None),
    ],
)
def test_one_format_and_two_neighbours(limit: int, single: list[int] | None, fill: list[int] | None) -> None:
    assert at(limit) == (single, fill)


def test_pinned_items_keep_their_only_option() -> None:
    allowed = np.ones((4, 4), dtype=bool)
    allowed[1] = [False, False, False, True]
    assert at(28, allowed=allowed) == ([1, 3, 1, 1], [1, 3, 2, 2])  # of 2 left the first item would take 4


def test_a_format_that_one_item_cannot_take_is_none() -> None:
    allowed = np.ones((4, 4), dtype=bool)
    allowed[2, 1] = False
    assert at(27, allowed=allowed) == ([0, 0, 0, 0], [2, 2, 2, 0])  # 3 bits everywhere, 21, is none


def test_no_format_that_all_can_take() -> None:
    allowed = [[True, True, False, False], [False, False, True, True]]
    crossed = make(np.ones((2, 4)), np.ones((2, 4), dtype=int), 9, allowed=allowed)
    assert rivals(crossed) == (None, None)


def test_a_costlier_format_that_loses_more_is_no_neighbour() -> None:
    problem = make([[5.0, 7.0, 1.0], [5.0, 7.0, 1.0]], [[1, 2, 3], [1, 2, 3]], 4)
    assert rivals(problem)[1] == [2, 0]


def test_of_equal_losses_the_cheaper_format() -> None:
    problem = make([[5.0, 5.0], [5.0, 5.0]], [[2, 1], [2, 1]], 9)
    assert rivals(problem)[0] == [1, 1]


def test_solve_gives_the_better_of_the_two() -> None:
    # Raising the first item to the costlier format costs more than it saves, column totals notwithstanding.
    problem = make([[1.0, 4.0], [9.0, 1.0]], [[1, 2], [1, 2]], 3)
    assert rivals(problem)[1] == [1, 0]
    solution = solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist() == [0, 0]
    assert (solution.status, solution.solver, solution.proof) == (Status.FEASIBLE, "uniform", "bound")
    assert solution.certificate is not None
    assert solution.certificate.gap / solution.certificate.loss_scale == 8  # 10 against the optimum, 2


def test_uniform_can_be_optimal() -> None:
    solution = solve(make(LOSS, np.outer([4, 1, 1, 1], BITS), 56))
    assert (solution.status, solution.proof) == (Status.OPTIMAL, "multipliers")


def test_where_no_format_fits_the_cheapest_options() -> None:
    problem = make([[1.0, 4.0], [9.0, 1.0]], [[3, 1], [1, 3]], 3)
    solution = solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist() == [1, 0]


def test_infeasible_says_what_would_do() -> None:
    solution = solve(make([[1.0, 4.0]], [[3, 2]], 1))
    assert (solution.status, solution.smallest_limit, solution.solver) == (Status.INFEASIBLE, (2,), "uniform")


def test_several_resources() -> None:
    cost = [[[1, 2, 9], [1, 2, 9]], [[1, 3, 4], [1, 3, 4]]]
    loss = [[9.0, 4.0, 1.0], [9.0, 4.0, 1.0]]
    problem = make(loss, cost, 18, 6)
    assert rivals(problem)[0] == [1, 1]
    assert rivals(problem)[1] == [1, 1]
    assert rivals(make(loss, cost, 18, 7))[1] == [2, 1]
    assert solve(problem).loss == 8.0
    crossed = make([[0.0, 0.0], [0.0, 0.0]], [[[5, 1], [1, 5]], [[1, 5], [5, 1]]], 10, 5)
    solution = solve(crossed)
    assert (solution.status, solution.choice) == (Status.LIMIT, None)
