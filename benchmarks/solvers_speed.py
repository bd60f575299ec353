"""How long does planning take, exactly solved, and how long would a general mixed-integer solver take?

Problems like those of real models: matrices of all sizes, losses that fall about fourfold with each bit, formats that differ
in bits and group size; budgets from tight to loose. `best` and HiGHS (through scipy) solve the same problems in the
same run; the ratio is what to remember, since seconds depend on the machine. HiGHS stops after a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bitplan.solvers import SOLVERS, ChoiceProblem, frontier, recompute

SIZES = ((211, 7), (1000, 8), (10000, 8))
SHARES = (0.1, 0.3, 0.6)  # of the way from the smallest to the largest total cost
HIGHS_SECONDS = 60.0


def layers(items: int, options: int, share: float, seed: int) -> ChoiceProblem:
    rng = np.random.default_rng([seed, items])
    size = np.exp(rng.uniform(np.log(2e5), np.log(6e6), items)).astype(np.int64)
    bits = np.linspace(2, 8, options)
    loss = np.exp(rng.normal(0, 1.5, (items, 1))) * size[:, None] * 2.0 ** (-rng.uniform(1.7, 2.1, (items, 1)) * bits)
    loss *= 1e-9 * np.exp(rng.normal(0, 0.15, loss.shape))
    cost = (size[:, None] * (bits + 0.25) / 8).astype(np.int64)
    limit = cost.min(axis=1).sum() + int(share * (cost.max(axis=1) - cost.min(axis=1)).sum())
    return ChoiceProblem(loss, cost[None], np.array([limit]), np.ones(loss.shape, dtype=np.bool_))


def highs(problem: ChoiceProblem) -> tuple[float, bool, npt.NDArray[np.int64]]:
    """Seconds, whether it was done in time, and the choice."""
    items, options = problem.loss.shape
    one_each = csr_array((np.ones(items * options), (np.repeat(np.arange(items), options), np.arange(items * options))))
    started = time.perf_counter()
    result = milp(
        (problem.loss / problem.loss.max()).ravel(),
        integrality=np.ones(items * options, dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(problem.cost.reshape(1, -1) / problem.limit[0], -np.inf, 1),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": HIGHS_SECONDS},
    )
    seconds = time.perf_counter() - started
    assert result.x is not None
    return seconds, result.status == 0, np.asarray(result.x.reshape(items, options).argmax(axis=1), dtype=np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="problems a size and share")
    parser.add_argument("--without-highs", action="store_true", help="time our own solvers only")
    arguments = parser.parse_args()
    print(
        f"{'items':>6} {'options':>7} {'share':>5} {'best, median':>13} {'largest':>9} {'frontier':>9} {'HiGHS':>10} {'ratio':>7}"
    )
    for items, options in SIZES:
        for share in SHARES:
            ours, curve = [], []
            for seed in range(arguments.repeats):
                problem = layers(items, options, share, seed)
                started = time.perf_counter()
                solution = SOLVERS["best"](problem)
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                frontier(problem)
                curve.append(time.perf_counter() - started)
            line = f"{items:6} {options:7} {share:5} {1e3 * statistics.median(ours):10.1f} ms {1e3 * max(ours):6.1f} ms"
            line += f" {1e3 * statistics.median(curve):6.1f} ms"
            if not arguments.without_highs:
                seconds, done, choice = highs(problem)
                loss, cost = recompute(problem, choice)
                line += f" {'' if done else '>'}{1e3 * seconds:7.0f} ms {seconds / ours[-1]:6.0f}x"
                # Tolerances: HiGHS may exceed the limit by a millionth of it, or stop a little above the optimum.
                line += f"  its loss {loss / solution.loss - 1:+.1e}, of its limit {cost[0] / problem.limit[0] - 1:+.0e}"
            print(f"{line}  {solution.status.name} by {solution.proof}", flush=True)


if __name__ == "__main__":
    main()
