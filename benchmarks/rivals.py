"""How other tools choose bits, restated over our tables, so that a benchmark can run them on problems whose optimum is known.

Each takes a `ChoiceProblem` without floors or rules and gives a choice and whether its author would call it optimal. None of
them is ours to improve: tolerances, units and retries are those of the tool. What is *not* restated are their scores.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import importlib.util
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitplan.solvers import ChoiceProblem, scaled
from bitplan.solvers.ilp import cbc_path

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RETRIES = (None, 0.99, 0.90)  # shares of the budget that Model Optimizer makes a plan spend when the first try fails
LARGEST = 2.0**40  # loss that CP-SAT gets to see: it takes whole numbers


@dataclass(frozen=True, eq=False)
class Claim:
    """`choice` (n,), None where the tool found none; whether the tool calls it `optimal`; its own `word`; the time it took."""

    choice: Ints | None
    optimal: bool
    word: str
    seconds: float

    def keeps_the_limits(self, problem: ChoiceProblem) -> bool:
        """Whether there is a choice and it is within every limit, in whole numbers: tolerances let some overstep."""
        return self.choice is not None and not problem.rows.broken(self.choice)


def model_optimizer(problem: ChoiceProblem, *, time_limit: float | None = None) -> Claim:
    """NVIDIA Model Optimizer 0.47 (`searcher.LPS`): PuLP and CBC with default tolerances, the losses in their own unit.

    Binary variables, one of each item's, the budget as it is. When CBC does not say "Optimal", again with the cost forced above
    99 % and then 90 % of the budget; failing that, the last selection is used all the same. It sets no time limit; the one here
    is the benchmark's.
    """
    started, choice, word = time.perf_counter(), None, ""
    for share in RETRIES:
        least = None if share is None else share * problem.limit.astype(np.float64)
        choice, word = _pulp(problem, problem.loss, least, time_limit)
        if word == "Optimal":
            break
    return Claim(choice, word == "Optimal", word, time.perf_counter() - started)


def cbc_hawq(problem: ChoiceProblem, *, time_limit: float | None = None) -> Claim:
    """HAWQ-V3 (`ILP.ipynb`) in PuLP: what each width saves over the narrowest, a negative objective in its own unit.

    Where every item has two options it is their programme, an integer variable from 1 to 2 for each; else its general form with
    one binary variable a pair. They call GLPK, here it is CBC with default tolerances.
    """
    started = time.perf_counter()
    first = problem.allowed.argmax(axis=1)
    relative = problem.loss - problem.loss[np.arange(problem.items), first][:, None]
    if problem.loss.shape[1] == 2 and problem.allowed.all():
        choice, word = _widths(problem, relative[:, 1], time_limit)
    else:
        choice, word = _pulp(problem, relative, None, time_limit)
    choice = choice if word in ("Optimal", "Stopped") else None
    return Claim(choice, word == "Optimal", word, time.perf_counter() - started)


def autoround_dp(problem: ChoiceProblem, *, max_states: int | None = None) -> Claim:
    """Intel auto-round's AutoScheme: dynamic programming over the bits spent so far, one linked path a state, pure Python.

    After each item only states that lose less than every cheaper one stay. Exact for the scores given, with no bound on the
    number of states; `max_states` thins them evenly, as its caller never asks for. One limit only.
    """
    _check(problem, resources=1)
    started, limit = time.perf_counter(), int(problem.limit[0])
    states: dict[int, tuple[float, Any]] = {0: (0.0, None)}
    for losses, costs, allowed in zip(problem.loss.tolist(), problem.cost[0].tolist(), problem.allowed.tolist(), strict=True):
        after: dict[int, tuple[float, Any]] = {}
        for spent, (lost, path) in states.items():
            for option, there in enumerate(allowed):
                total = spent + costs[option]
                if not there or total > limit:
                    continue
                loss = lost + losses[option]
                if total not in after or loss < after[total][0]:
                    after[total] = (loss, (path, option))
        states, best = {}, math.inf
        for total in sorted(after):
            if after[total][0] < best:
                states[total], best = after[total], after[total][0]
        if not states:
            return Claim(None, True, "infeasible", time.perf_counter() - started)
        if max_states is not None and len(states) > max_states:
            places = np.linspace(0, len(states) - 1, max_states).astype(int)
            totals = list(states)
            states = {totals[place]: states[totals[place]] for place in places}
    path = min(states.values(), key=lambda state: state[0])[1]
    options: list[int] = []
    while path is not None:
        path, option = path
        options.append(option)
    choice = np.array(options[::-1], dtype=np.int64)
    return Claim(choice, max_states is None, "dynamic programming", time.perf_counter() - started)


def scipy_milp(problem: ChoiceProblem, *, time_limit: float | None = None) -> Claim:
    """`scipy.optimize.milp` as one would first write it: HiGHS, losses and costs in their own units, default tolerances."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    _check(problem)
    started = time.perf_counter()
    item, option = np.nonzero(problem.allowed)
    one_each = csr_array((np.ones(len(item)), (item, np.arange(len(item)))))
    constraints = [
        LinearConstraint(one_each, 1, 1),
        LinearConstraint(problem.cost[:, item, option].astype(np.float64), -np.inf, problem.limit.astype(np.float64)),
    ]
    options: Any = {} if time_limit is None else {"time_limit": time_limit}
    result = milp(
        problem.loss[item, option],
        integrality=np.ones(len(item), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options=options,
    )
    choice = None if result.x is None else _choice(problem, np.asarray(result.x))
    return Claim(choice, result.status == 0, str(result.message), time.perf_counter() - started)


def cpsat(problem: ChoiceProblem, *, time_limit: float | None = None, workers: int = 1) -> Claim:
    """CP-SAT of Google OR-Tools (tried with 9.15): losses as whole numbers, the largest 2^40, so its sums are exact.

    It runs in a process of its own, since OR-Tools and highspy bring along libraries of HiGHS that exclude each other;
    `seconds` leaves out the start of that process. Raises ValueError when OR-Tools is not installed: it is no dependency.
    """
    if importlib.util.find_spec("ortools") is None:
        raise ValueError("this rival needs OR-Tools: pip install ortools")
    _check(problem)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_cpsat, problem.loss, problem.cost, problem.limit, problem.allowed, time_limit, workers).result()


def _cpsat(
    loss: Floats, cost: Ints, limit: Ints, allowed: npt.NDArray[np.bool_], time_limit: float | None, workers: int
) -> Claim:
    cp_model: Any = importlib.import_module("ortools.sat.python.cp_model")
    started = time.perf_counter()
    problem = ChoiceProblem(loss, cost, limit, allowed)
    whole = np.rint(loss * (LARGEST / (float(loss.max()) or 1.0))).astype(np.int64)
    item, option = np.nonzero(allowed)
    model = cp_model.CpModel()
    variables = [model.new_bool_var("") for _ in item]
    for one in range(problem.items):
        model.add_exactly_one(variables[k] for k in np.flatnonzero(item == one))
    for weights, most in zip(cost[:, item, option].tolist(), limit.tolist(), strict=True):
        model.add(cp_model.LinearExpr.weighted_sum(variables, weights) <= most)
    model.minimize(cp_model.LinearExpr.weighted_sum(variables, whole[item, option].tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    if time_limit is not None:
        solver.parameters.max_time_in_seconds = time_limit
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    choice = _choice(problem, np.array([solver.value(variable) for variable in variables], dtype=np.float64)) if found else None
    optimal = status in (cp_model.OPTIMAL, cp_model.INFEASIBLE)
    return Claim(choice, optimal, solver.status_name(status), time.perf_counter() - started)


def _pulp(problem: ChoiceProblem, loss: Floats, least: Floats | None, time_limit: float | None) -> tuple[Ints | None, str]:
    """One binary variable a pair, solved by CBC as it comes: the choice and PuLP's word."""
    import pulp

    _check(problem)
    model = pulp.LpProblem("bits", pulp.LpMinimize)
    item, option = (axis.tolist() for axis in np.nonzero(problem.allowed))
    variables = [model.add_variable(f"z{i}_{j}", 0, 1, "Binary") for i, j in zip(item, option, strict=True)]
    model.setObjective(pulp.LpAffineExpression(zip(variables, loss[item, option].tolist(), strict=True)))
    members: list[list[Any]] = [[] for _ in range(problem.items)]
    for i, variable in zip(item, variables, strict=True):
        members[i].append(variable)
    for of_item in members:
        model.addConstraint(pulp.lpSum(of_item) == 1)
    for row, (cost, limit) in enumerate(zip(problem.cost, problem.limit.tolist(), strict=True)):
        spent = pulp.LpAffineExpression(zip(variables, cost[item, option].tolist(), strict=True))
        model.addConstraint(spent <= limit)
        if least is not None:
            model.addConstraint(spent >= float(least[row]))
    model.solve(pulp.COIN_CMD(path=cbc_path(), msg=False, timeLimit=time_limit))
    values = [variable.value() for variable in variables]
    choice = None if None in values else _choice(problem, np.array(values))
    return choice, _word(model)


def _widths(problem: ChoiceProblem, saved: Floats, time_limit: float | None) -> tuple[Ints | None, str]:
    """HAWQ-V3's own form: x_i in 1..2, the objective sum (x_i - 1) (Omega_i(8) - Omega_i(4))."""
    import pulp

    _check(problem)
    model = pulp.LpProblem("bits", pulp.LpMinimize)
    variables = [model.add_variable(f"x{i}", 1, 2, "Integer") for i in range(problem.items)]
    model.setObjective(pulp.lpSum((x - 1) * each for x, each in zip(variables, saved.tolist(), strict=True)))
    for cost, limit in zip(problem.cost.tolist(), problem.limit.tolist(), strict=True):
        spent = pulp.lpSum(low + (x - 1) * (high - low) for x, (low, high) in zip(variables, cost, strict=True))
        model.addConstraint(spent <= limit)
    model.solve(pulp.COIN_CMD(path=cbc_path(), msg=False, timeLimit=time_limit))
    values: Sequence[float | None] = [variable.value() for variable in variables]
    choice = None if None in values else np.rint(np.array(values, dtype=np.float64) - 1).astype(np.int64)
    return choice, _word(model)


def _word(model: Any) -> str:
    """PuLP calls a plan "Optimal" even where the time limit stopped CBC; its second word tells them apart."""
    import pulp

    stopped = model.sol_status == pulp.LpSolutionIntegerFeasible
    return "Stopped" if stopped else str(pulp.LpStatus[model.status])


def _choice(problem: ChoiceProblem, values: Floats) -> Ints:
    """Of each item the option with the largest value: what these tools read out of a solver."""
    table = np.full(problem.loss.shape, -1.0)
    table[problem.allowed] = values
    return np.asarray(table.argmax(axis=1), dtype=np.int64)


def _check(problem: ChoiceProblem, resources: int | None = None) -> None:
    if problem.rules or problem.floor.any() or resources not in (None, problem.resources):
        raise ValueError("the rivals know limits and nothing else, some of them one only")


def ratio(problem: ChoiceProblem, claim: Claim, optimum: Ints) -> float:
    """Loss of a claim over the least, in exact integers; infinity without a choice, 1 where both lose nothing."""
    if claim.choice is None:
        return math.inf
    table, items = scaled(problem).loss, np.arange(problem.items)
    lost, least = int(table[items, claim.choice].sum()), int(table[items, optimum].sum())
    return 1.0 if lost == least else lost / least if least else math.inf
