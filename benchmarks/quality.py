"""Which metric makes the best plan of a given size? Every plan measured, on data used for nothing else.

For one model, at exactly the stored bytes of uniform int2, int3 and int4 (groups of 64, asymmetric) and half way between them:
the plan of each metric, the uniform plan (the better of the best single format and two neighbouring formats in layer
order), and the mean of five random plans. All plans are made of the same renderings; embeddings and heads are pinned to
their own dtype. Every palette holds something below int2-g64, so that there is a choice at the smallest size; the uniform
plan may use all of the palette too.

    python benchmarks/quality.py MODEL --calibration SOURCE --evaluation SOURCE [--tokens N] [--evaluate N] --name NAME
        [--palette g64|g64+g128] [--metrics A,B] [--random N]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bitplan.allocator import PlanRequest, ProfileRequest, home_folder, profile_model
from bitplan.allocator.build import Built, build_problem
from bitplan.allocator.data import load_calibration
from bitplan.allocator.execution import executed_module
from bitplan.allocator.prepared import prepare
from bitplan.allocator.profile import load_model
from bitplan.allocator.solve import versions
from bitplan.allocator.source import resolve
from bitplan.sensitivity.calibration import assert_disjoint
from bitplan.sensitivity.compare import UNTOUCHED, compare, standard_error, task_figure, task_name
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.units import Inventory
from bitplan.solvers import SOLVERS
from bitplan.solvers.problem import ChoiceProblem
from bitplan.solvers.uniform import layer_order_fill, single_format
from machine import describe

PALETTES = {
    "g64": ("int2-g128-asym", *(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 6, 8))),
    "g64+g128": (*(f"int{bits}-g128-asym" for bits in (2, 3, 4)), *(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 6))),
}
METRICS = "kl_fisher,output_error,weight_error"
SIZES = {
    "int2": ("int2", "int2"),
    "int2.5": ("int2", "int3"),
    "int3": ("int3", "int3"),
    "int3.5": ("int3", "int4"),
    "int4": ("int4", "int4"),
}
RANDOM_PLANS = 5


def pins_of(inventory: Inventory) -> tuple[tuple[str, str], ...]:
    """Embeddings, heads and the first convolution keep their own dtype."""
    kept = [unit.name for unit in inventory.units if unit.role in ("embedding", "head") or unit.kind == "conv"]
    return tuple((name.replace(".", r"\."), "native") for name in kept)


def size_of(inventory: Inventory, pinned: frozenset[str], low: str, high: str) -> int:
    """Bytes of the model half way between two uniform plans (or at one of them)."""
    from bitplan.kernels.formats import FORMATS

    def total(name: str) -> int:
        free = sum(u.stored_bytes(FORMATS[f"{name}-g64-asym"]) for u in inventory.units if u.name not in pinned)
        kept = sum(u.stored_bytes(FORMATS[u.native]) for u in inventory.units if u.name in pinned)
        return inventory.fixed_bytes + free + kept

    return (total(low) + total(high)) // 2


def random_choice(problem: ChoiceProblem, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Start from the cheapest options and move items, in random order, to random options that still fit, until none does."""
    chance = random.Random(seed)
    cost = np.where(problem.allowed, problem.cost[0], np.iinfo(np.int64).max)
    choice = cost.argmin(axis=1).astype(np.int64)
    moves = [(i, j) for i in range(problem.items) for j in range(problem.loss.shape[1]) if problem.allowed[i, j]]
    chance.shuffle(moves)
    left = int(problem.limit[0]) - int(cost[np.arange(problem.items), choice].sum())
    for i, j in moves:
        more = int(cost[i, j] - cost[i, choice[i]])
        if 0 < more <= left:
            choice[i], left = j, left - more
    return np.asarray(choice, dtype=np.int64)


def plans(built: dict[str, Built], random_plans: int) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.int64]], float | None]]:
    """(name, choice, predicted loss) for every competitor."""
    for metric, one in built.items():
        solution = SOLVERS["best"](one.problem)
        assert solution.choice is not None
        yield metric, solution.choice, solution.loss if metric == "kl_fisher" else None
    problem = built["kl_fisher"].problem
    single, filled = single_format(problem), layer_order_fill(problem)
    assert single is not None
    yield "uniform", single, None
    if filled is not None and not np.array_equal(single, filled):
        yield "uniform, filled", filled, None
    for seed in range(random_plans):
        yield f"random {seed}", random_choice(problem, seed), None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--calibration", required=True)
    arguments.add_argument("--evaluation", required=True)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--evaluate", type=int, default=4096)
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--palette", choices=PALETTES, default="g64")
    arguments.add_argument("--metrics", default=METRICS)
    arguments.add_argument("--random", type=int, default=RANDOM_PLANS)
    options = arguments.parse_args()
    started = time.perf_counter()
    home = home_folder()
    request = ProfileRequest(
        options.model, formats=PALETTES[options.palette], calibration=options.calibration, tokens=options.tokens
    )
    reports: dict[str, SensitivityReport] = {}
    for metric in options.metrics.split(","):
        reports[metric] = profile_model(replace(request, metric=metric), home=home)
        print(f"{metric}: profiled in {reports[metric].seconds:.0f} s", flush=True)
    loaded = load_model(resolve(options.model), home)
    prepared = prepare(request, loaded, home)
    inventory = loaded.network.inventory
    part = load_calibration(loaded, options.evaluation, tokens=options.evaluate, seed=1).verify
    assert prepared.calibration is not None
    assert_disjoint(prepared.calibration.render, prepared.calibration.estimate, part)
    pins, task = pins_of(inventory), task_name(loaded.network, part)
    cells: list[dict[str, Any]] = []
    for size, (low, high) in SIZES.items():
        pinned = frozenset(name.replace("\\.", ".") for name, _ in pins)
        budget = size_of(inventory, pinned, low, high)
        built = {
            metric: build_problem(inventory, report, PlanRequest(request, str(budget), pins=pins))
            for metric, report in reports.items()
        }
        one = built["kl_fisher"]
        competitors = {name: (choice, predicted) for name, choice, predicted in plans(built, options.random)}
        copies = {name: executed_module(prepared, one.assignment(choice)) for name, (choice, _) in competitors.items()}
        measured = compare(loaded.network, copies, part)
        baseline = measured["kl_fisher"]
        for name, (choice, predicted) in competitors.items():
            plan = measured[name]
            difference = plan.divergence - baseline.divergence
            cells.append(
                {
                    "size": size,
                    "limit_bytes": budget,
                    "plan": name,
                    "bytes": inventory.fixed_bytes + int(one.problem.cost[0][np.arange(one.problem.items), choice].sum()),
                    "predicted": predicted,
                    "loss": plan.loss,
                    "loss_stderr": plan.loss_stderr,
                    "above_kl_fisher": float(np.average(difference, weights=plan.weights)),
                    "above_kl_fisher_stderr": standard_error(difference, plan.weights),
                    task: task_figure(task, plan),
                    f"{task} untouched": task_figure(task, measured[UNTOUCHED]),
                }
            )
            print(f"{size:7} {name:16} loss {plan.loss:.5g} +- {plan.loss_stderr:.2g}  predicted {predicted}", flush=True)
    document = {
        "question": "which metric makes the best plan of a given size",
        "command": f"python benchmarks/quality.py {Path(options.model).name} --tokens {options.tokens} "
        f"--evaluate {options.evaluate} --palette {options.palette} --metrics {options.metrics} --random {options.random}",
        "model": Path(options.model).name,
        "calibration": Path(options.calibration).name,
        "evaluation": Path(options.evaluation).name,
        "quantity": loaded.network.quantity,
        "palette": PALETTES[options.palette],
        "examples": part.examples,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
        "profile_seconds": {metric: report.seconds for metric, report in reports.items()},
        "seconds": time.perf_counter() - started,
        "cells": cells,
    }
    target = Path(__file__).parent / "results" / f"quality-{options.name}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
