"""Integer linear programming through PuLP, by CBC or HiGHS, with the care that CBC needs.

One binary variable for each allowed pair of item and option, as in `milp.py`, stated in PuLP (Mitchell, O'Sullivan and Dunning
2011) and solved by CBC (Forrest and Lougee-Heimer 2005) or HiGHS (Huangfu and Hall 2018). CBC takes an answer for better only
when its objective is smaller by 1e-5 (option `increment`), stops within an absolute gap, and knows nothing of the unit of the
losses: sums of 1e-6 look all alike to it, and it calls the first of them optimal. So here each item's least loss is taken
off, which changes no choice, and the largest loss left is a million:

    objective[i, j] = 1e6 (E[i, j] - min_j E[i, j]) / max,      increment = absolute gap = 1e-4

that is, 1e-10 of the largest loss. In each row, the least of every item is taken off as well, and what remains is divided by
the greatest common divisor and bounded by whole numbers: where all costs are multiples of 3, a limit of 50 is one of 48,
which CBC would search long to find out. Since either solver lets a row be broken by its tolerance, totals are added up again
in integers and the bounds tightened by what was too much.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from . import hull
from .arrays import Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .highs import Found
from .infeasible import no_choice
from .lagrangian import near_choice, relax
from .problem import ChoiceProblem, Solution, least_costs, without_choice
from .reduced import ReducedRow

Backend = Literal["cbc", "highs"]

LARGEST = 1e6  # the largest entry of the objective
ROW = 1024.0  # the largest number in a row, unless all are whole and smaller
STEP = 1e-4  # of the objective: what an answer must be better by, and how near to the bound a search may stop
ROUNDS = 4  # of tightening a bound by what a tolerance let a choice break it
NAMES = {"cbc": "CBC", "highs": "HiGHS"}


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, backend: Backend = "cbc") -> Solution:
    """Integer linear programming through PuLP by CBC (or HiGHS): the least loss to within 1e-7 of the largest, for any rows.

    The multipliers are those of `hull` for one limit and of `lagrangian` else. OPTIMAL only where they prove it: the backend's
    own word is good to its tolerances, and then the status is FEASIBLE and `reason` says so. When `time_limit` (which CBC
    looks at between its steps only) cuts the search short, the status is LIMIT and the choice is the better of the backend's
    and the relaxation's. INFEASIBLE only where HiGHS, asked through SciPy, agrees.

    Raises ValueError when the backend is unknown or not installed, saying what to install, and PuLP's PulpSolverError when
    the program of CBC fails.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    _check_installed(backend)
    tables = scaled(problem)
    if problem.plain:
        least = least_costs(problem)
        if least[0] > problem.limit[0]:
            return without_choice(problem, least, "ilp", started, ("the limit of resource 0",))
        relaxation = hull.relax(tables)
        multipliers = [relaxation.multiplier]
    else:
        dual = relax(tables, deadline)
        multipliers = dual.multipliers
    found = search(tables, deadline, backend)
    choice, word = found.choice, "optimal within its tolerances"
    if choice is None or not found.done:
        near: Ints | None
        if problem.plain:
            near, proven = hull.fill(tables, relaxation.choice), False
        else:
            near, proven = near_choice(tables, dual, deadline)
        choice = _better(tables, choice, near)
        if choice is None:
            return no_choice(problem, tables, found.done and proven, "ilp", started, deadline)
        late, nothing = time.perf_counter() >= deadline, found.choice is None
        word = "stopped by the time limit" if late else "found no choice" if nothing else "stopped by its tolerances"
        word += "; the choice is " + ("the relaxation's" if nothing else "the better of its own and the relaxation's")
    if problem.plain:
        choice = hull.fill(tables, choice)  # a last move may save something below what the backend can see
    stopped = found.choice is None or not found.done
    solution = answer(problem, choice, multipliers, "ilp", started, stopped=stopped, tables=tables)
    return replace(solution, reason=f"{NAMES[backend]} through PuLP: {word}")


def search(tables: ScaledTables, deadline: float, backend: Backend) -> Found:
    """The choice of least loss that keeps the rows, as the backend sees it, and whether it was done by the deadline."""
    rows = tables.rows
    least, most = rows.least.copy(), rows.most.copy()
    reduced = [ReducedRow.of(tables, row) for row in range(len(rows))]
    for _ in range(ROUNDS):
        if time.perf_counter() >= deadline:
            break
        model, variables = model_of(tables, reduced, least, most)
        seconds = None if deadline == math.inf else max(0.01, deadline - time.perf_counter())
        status, optimal = _run(model, backend, seconds)
        if status < 0:
            return Found(None, True)
        values = [variable.value() for variable in variables]
        if status == 0 or None in values:
            break
        table = np.full(tables.loss.shape, -1.0)
        table[tables.allowed] = values
        choice = table.argmax(axis=1)
        totals = rows.totals(choice)
        over, under = np.maximum(totals - rows.most, 0), np.maximum(rows.least - totals, 0)
        if not over.any() and not under.any():
            return Found(choice, optimal)
        least, most = least + under, most - over
    return Found(None, False)


def model_of(tables: ScaledTables, rows: Sequence[ReducedRow], least: Ints, most: Ints) -> tuple[Any, list[Any]]:
    """The programme as PuLP's problem, and its variables, one for each allowed pair in the order of the table."""
    import pulp

    item, option = np.nonzero(tables.allowed)
    model = pulp.LpProblem("choice", pulp.LpMinimize)
    variables = [model.add_variable(f"x{k}", 0, 1, "Integer") for k in range(len(item))]
    model.setObjective(pulp.LpAffineExpression(zip(variables, objective_of(tables).tolist(), strict=True)))
    of_item: list[list[tuple[Any, float]]] = [[] for _ in range(len(tables.loss))]
    for variable, one in zip(variables, item.tolist(), strict=True):
        of_item[one].append((variable, 1.0))
    for pairs in of_item:
        model.addConstraint(pulp.LpAffineExpression(pairs) == 1)
    for row, bounds in zip(rows, zip(least.tolist(), most.tolist(), strict=True), strict=True):
        lower, upper = row.bounds(*bounds)
        weights = row.weights[item, option]
        unit = max(1.0, max(abs(lower or 0), abs(upper or 0), int(weights.max())) / ROW)
        total = pulp.LpAffineExpression((variables[k], int(weights[k]) / unit) for k in np.flatnonzero(weights).tolist())
        if upper is not None:
            model.addConstraint(total <= upper / unit)
        if lower is not None:
            model.addConstraint(total >= lower / unit)
    return model, variables


def objective_of(tables: ScaledTables) -> Floats:
    """The losses (variables,) less the least of their item, the largest of them LARGEST; see the top of this file."""
    least = np.where(tables.allowed, tables.loss, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    above: Floats = (tables.loss - least)[tables.allowed].astype(np.float64)
    return above * (LARGEST / (float(above.max()) or 1.0))


def cbc_path() -> str | None:
    """The program that PuLP brings along, else a `cbc` of the system's; None where there is neither."""
    import shutil

    import pulp

    bundled = getattr(getattr(pulp, "PULP_CBC_CMD", None), "pulp_cbc_path", None)
    if bundled is not None and os.access(bundled, os.X_OK):
        return str(bundled)
    return shutil.which("cbc")


def _run(model: Any, backend: Backend, seconds: float | None) -> tuple[int, bool]:
    """Solve silently on one thread: 1 with a choice, 0 without, -1 when there is none; and whether it is called optimal."""
    import pulp

    settings = {"msg": False, "timeLimit": seconds, "gapRel": 0.0, "gapAbs": STEP}
    # CBC talks through files. PuLP deletes them when all goes well, the folder goes whatever happens.
    with tempfile.TemporaryDirectory(prefix="bitplan-") as folder:
        if backend == "cbc":
            solver = pulp.COIN_CMD(path=cbc_path(), threads=1, options=[f"increment {STEP}"], **settings)
            solver.tmpDir = folder
        else:
            # Its option `threads` fails where the process has run HiGHS with another number before.
            solver = pulp.HiGHS(parallel="off", **settings)
        model.solve(solver)
    if model.status == pulp.LpStatusInfeasible:
        return -1, False
    return int(model.status == pulp.LpStatusOptimal), model.sol_status == pulp.LpSolutionOptimal


def _check_installed(backend: str) -> None:
    if backend not in NAMES:
        raise ValueError(f"the backends of ilp are 'cbc' and 'highs', not {backend!r}")
    if importlib.util.find_spec("pulp") is None:
        raise ValueError("ilp needs PuLP: pip install 'pulp>=3.3'; or use `milp`, which needs SciPy only")
    import pulp

    if backend == "highs" and not pulp.HiGHS(msg=False).available():
        raise ValueError("the backend 'highs' needs highspy: pip install highspy; or use backend='cbc'")
    if backend == "cbc" and cbc_path() is None:
        raise ValueError("the backend 'cbc' needs the program cbc: pip install 'pulp[cbc]'; or use backend='highs'")


def _better(tables: ScaledTables, first: Ints | None, second: Ints | None) -> Ints | None:
    """Of two choices that keep the rows, where there are so many, the one that loses less."""
    choices = [choice for choice in (first, second) if choice is not None]
    items = np.arange(len(tables.loss))
    return min(choices, key=lambda choice: int(tables.loss[items, choice].sum()), default=None)
