"""Choice problems, numbers only: pick one option for each item, minimise the total loss, keep within limits.

    from bitplan.solvers import SOLVERS, ChoiceProblem

    solution = SOLVERS["best"](ChoiceProblem(loss, cost, limit, allowed))

`problem.py` states the problem: tables, limits, floors, and rules (`rules.py`) that count, balance or forbid. A solver is a
function `solve(problem, *, time_limit=None) -> Solution` in a file of its own. It never exceeds a limit or breaks a rule, and
every choice comes with a certificate that `certify` computes from the tables. To add one: write the file, and add a line to
SOLVERS; the contract tests then run it on every known problem.

Beside the solvers: all budgets at once (`frontier`, `pareto`); other objectives (`solve_worst`, `solve_product`,
`least_cost`); problems turned into choice problems and back (`merge_tied`, `fuse`, `monotone_chains`, `drop_only`,
`mirror`); and what noise in the losses does (`probability_right`, `pessimistic`, `monotone`).
"""

from __future__ import annotations

from typing import Protocol

from . import (
    best,
    closed_form,
    convex,
    core,
    dp,
    dp_error,
    evolution,
    greedy,
    hull,
    ilp,
    lagrangian,
    milp,
    pairing,
    random,
    segment_dp,
    uniform,
)
from .brute_force import brute_force
from .certificate import ScaledTables, certify, scaled
from .chains import drop_only, monotone_chains
from .frontier import Frontier, Step, frontier
from .fusions import FusedChoice, Fusion, fuse
from .mirror import LeastCost, least_cost, mirror
from .pareto import ParetoFront, pareto
from .problem import Certificate, ChoiceProblem, Solution, Status, recompute
from .product import ProductSolution, solve_product
from .reductions import merge_tied
from .robust import Repair, monotone, pessimistic, probability_right
from .rules import Rule, balance, count, forbid
from .worst import Threshold, WorstSolution, check_threshold, solve_worst

__all__ = [
    "SOLVERS",
    "Certificate",
    "ChoiceProblem",
    "Frontier",
    "FusedChoice",
    "Fusion",
    "LeastCost",
    "ParetoFront",
    "ProductSolution",
    "Repair",
    "Rule",
    "ScaledTables",
    "Solution",
    "Solver",
    "Status",
    "Step",
    "Threshold",
    "WorstSolution",
    "balance",
    "brute_force",
    "certify",
    "check_threshold",
    "count",
    "drop_only",
    "forbid",
    "frontier",
    "fuse",
    "least_cost",
    "merge_tied",
    "mirror",
    "monotone",
    "monotone_chains",
    "pareto",
    "pessimistic",
    "probability_right",
    "recompute",
    "scaled",
    "solve_product",
    "solve_worst",
]


class Solver(Protocol):
    """What stands in SOLVERS. The first line of its docstring says what it is, to whoever chooses among them."""

    def __call__(self, problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution: ...


SOLVERS: dict[str, Solver] = {
    "best": best.solve,
    # One limit and nothing else.
    "core": core.solve,
    "hull": hull.solve,
    "closed_form": closed_form.solve,
    "dp_error": dp_error.solve,
    "segment_dp": segment_dp.solve,
    # Any rows: several resources, floors, rules.
    "dp": dp.solve,
    "lagrangian": lagrangian.solve,
    "convex": convex.solve,
    "milp": milp.solve,
    "ilp": ilp.solve,
    "pairing": pairing.solve,
    # Near answers, and rivals to compare with.
    "evolution": evolution.solve,
    "greedy": greedy.solve,
    "uniform": uniform.solve,
    "random": random.solve,
}
