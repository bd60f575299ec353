"""Would plans be better if units were priced among the others as they are rounded? One step of refinement, measured.

A loss table prices every unit alone; `bitplan.sensitivity.around` gives the products of each unit's error with those of all
others around a plan. For a share a of them

    refined[u, f] = max(loss[u, f] + a products[u, f], loss[u, f] / 10)

For the plans of `kl_fisher` in the tournament (no ties) this takes the products on the data of the estimate, plans again by the
refined table for several a, and measures both plans on the tournament's held-out data, paired. The sum over units with half the
products is what a plan should lose on the data of the estimate; it stands beside what it does lose there.

    python benchmarks/around.py [MODEL ...] --data DIR
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitplan.allocator import profile_model
from bitplan.allocator.data import load_calibration
from bitplan.allocator.home import write_whole
from bitplan.allocator.solve import versions
from bitplan.sensitivity.around import products_around
from bitplan.sensitivity.compare import standard_error
from bitplan.sensitivity.network import run
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.study import Study
from contest import PALETTE, SIZES, Contest, plan_of
from machine import describe
from tournament import DEFAULT, ENTRANTS, RESULTS, Tournament, by_example

PATH = RESULTS / "around-plans.json"
SHARES = (0.25, 0.5, 1.0)
LEAST = 0.1  # of a unit's own loss


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", help=f"of {', '.join(ENTRANTS)}; default: all")
    arguments.add_argument("--data", type=Path, required=True)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # as in the tournament
    document: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {"found": {}}
    for name in options.models or ENTRANTS:
        document["found"][name] = refined(Tournament(name, ENTRANTS[name], options.data, (), float("inf")))
        document |= {
            "question": "would plans be better if units were priced among the other rounded ones",
            "command": "python benchmarks/around.py",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": describe(),
            "versions": versions(),
        }
        write_whole(PATH, (json.dumps(document, indent=1) + "\n").encode())


def refined(tournament: Tournament) -> dict[str, Any]:
    """For each size what the default's plan loses, and the plans made again around it as multiples of that."""
    report = profile_model(replace(tournament.request, metric=DEFAULT), home=tournament.home)
    prepared = tournament.prepared()
    network = prepared.loaded.network
    assert prepared.calibration is not None
    held_out = load_calibration(prepared.loaded, tournament.evaluation, tokens=tournament.entrant.evaluate, seed=1).verify
    contest = Contest(network, prepared.renderings)
    study = Study(network, prepared.renderings, prepared.calibration.estimate, PALETTE)
    columns = [report.formats.index(fmt) for fmt in PALETTE]
    with torch.no_grad():
        unseen = [run(network, batch) for batch in held_out.batches]

    def measure(assignment: dict[str, str]) -> dict[str, Any]:
        with contest.rounded(assignment), torch.no_grad():
            return by_example(network, held_out, unseen)

    found = {}
    for size in SIZES:
        plan = plan_for(contest, report, size)
        if plan is None:
            continue
        around = products_around(study, plan, report.loss[:, columns])
        products = np.zeros(report.loss.shape)
        products[:, columns] = np.nan_to_num(around.products)
        chosen = [(report.units.index(unit), report.formats.index(fmt)) for unit, fmt in plan.items()]
        before = measure(plan)
        one: dict[str, Any] = {
            "predicted": sum(report.loss[at] for at in chosen),
            "with_products": sum(report.loss[at] + products[at] / 2 for at in chosen),
            "same_data": around.measured,
            "loss": before["loss"],
        }
        for share in SHARES:
            table = np.maximum(report.loss + share * products, LEAST * report.loss)
            again = plan_for(contest, replace(report, loss=table), size)
            assert again is not None
            moved = sum(plan[unit] != fmt for unit, fmt in again.items())
            after = measure(again) if moved else before
            weights = np.array(before["batch_counts"], dtype=np.float64)
            difference = np.array(after["batch_means"]) - np.array(before["batch_means"])
            one[str(share)] = {
                "moved": moved,
                "ratio": after["loss"] / before["loss"],
                "stderr": standard_error(difference, weights) / before["loss"],
            }
        found[str(size)] = one
        print(tournament.name, size, json.dumps(one), flush=True)
    return found


def plan_for(contest: Contest, report: SensitivityReport, size: float) -> dict[str, str] | None:
    """The best plan by `report` without ties; None where none fits."""
    problem = contest.problem(report, "none", size)
    if int(problem.cost[0].min(axis=1).sum()) > contest.limit(size):
        return None
    return contest.assignment(problem, plan_of(problem), "none")


if __name__ == "__main__":
    main()
