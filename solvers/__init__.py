"""Choice problems, numbers only: pick one option for each item, minimise the total loss, keep within limits.

    from bitplan.solvers import SOLVERS, ChoiceProblem

    solution = SOLVERS["best"](ChoiceProblem(loss, cost, limit, allowed))

A solver is a function `solve(problem, *, time_limit=None) -> Solution` in a file of its own. It never exceeds a limit, and
every choice comes with a certificate that `certify` computes from the tables. To add one: write the file, and add a line to
SOLVERS; the contract tests then run it on every known problem.
"""

from __future__ import annotations

from typing import Protocol

from . import dp, hull, uniform
from .certificate import ScaledTables, certify, scaled
from .frontier import Frontier, frontier
from .problem import Certificate, ChoiceProblem, Solution, Status, brute_force, recompute
from .reductions import merge_tied

__all__ = [
    "SOLVERS",
    "Certificate",
    "ChoiceProblem",
    "Frontier",
    "ScaledTables",
    "Solution",
    "Solver",
    "Status",
    "best",
    "brute_force",
    "certify",
    "frontier",
    "merge_tied",
    "recompute",
    "scaled",
]


class Solver(Protocol):
    """What stands in SOLVERS. The first line of its docstring says what it is, to whoever chooses among them."""

    def __call__(self, problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution: ...


def best(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """The strongest that fits the problem: `dp`, exact, for one resource; `hull`, near and certified, for several.

    When the time limit cuts `dp` short, its answer is that of `hull` or better. `Solution.solver` says which of the two it was.
    """
    return (dp.solve if problem.resources == 1 else hull.solve)(problem, time_limit=time_limit)


SOLVERS: dict[str, Solver] = {
    "best": best,
    "dp": dp.solve,
    "hull": hull.solve,
    "uniform": uniform.solve,
}
