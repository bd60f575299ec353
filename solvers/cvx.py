"""CVXPY (Diamond and Boyd 2016): the one file that knows its solvers, statuses and warnings.

HiGHS solves the linear programmes and Clarabel the conic ones, whatever else is installed. Both have absolute tolerances, of
1e-10 and 1e-8, so what they see should be measured in units that make rows and bits about one, and losses no less.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any, Literal

Outcome = Literal["solved", "inaccurate", "impossible", "stopped"]

# The interior point method, crossed over to a vertex, is many times faster here than the simplex method.
HIGHS_OPTIONS = {"solver": "ipm", "primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def cvxpy_module() -> Any:
    """CVXPY, loaded when it is needed; its own types do not know all that it exports."""
    import cvxpy

    return cvxpy


def run(programme: Any, solver: Literal["HIGHS", "CLARABEL"], deadline: float) -> Outcome:
    """Solve a CVXPY problem: the one place that knows its statuses, warnings and exceptions. CVXPY has no types."""
    cvxpy = cvxpy_module()
    left = deadline - time.perf_counter()
    if left <= 0:
        return "stopped"
    options: dict[str, Any] = {} if left == math.inf else {"time_limit": left}
    if solver == "HIGHS":
        options["highs_options"] = dict(HIGHS_OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate" is what the outcome says
        try:
            programme.solve(solver=solver, **options)
        except cvxpy.error.SolverError:
            return "stopped"
    if programme.status == cvxpy.OPTIMAL:
        return "solved"
    if programme.status == cvxpy.OPTIMAL_INACCURATE:
        return "inaccurate"
    return "impossible" if programme.status in (cvxpy.INFEASIBLE, cvxpy.INFEASIBLE_INACCURATE) else "stopped"
