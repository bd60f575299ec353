"""Would plans be better if units were priced among the others as they are rounded? One step of refinement, measured.

A loss table prices every unit alone. Around a plan P, with G the gradient of the divergence at the weights of P, products with
the other units' errors are known to second order for every unit u and format f from one backward pass:

    products[u, f] = <G_u, W_u,f - W_u> - (2 loss[u, f] where f is the format of u in P)
    refined[u, f]  = max(loss[u, f] + a products[u, f], loss[u, f] / 10)

taking errors of one unit in two formats as independent. For the plans of `kl_fisher` in the tournament (no ties) this makes G on
the data of the estimate, plans again by the refined table for several a, and measures both plans on the tournament's held-out
data, paired. The sum over units with half the products is what P should lose on the data of the estimate; it stands beside
what it does lose there.

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
import numpy.typing as npt
import torch
from torch import Tensor

from bitplan.allocator import profile_model
from bitplan.allocator.data import load_calibration
from bitplan.allocator.home import write_whole
from bitplan.allocator.solve import versions
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.compare import standard_error
from bitplan.sensitivity.network import divergence, run
from bitplan.sensitivity.render import rendered_slices, unit_weights
from bitplan.sensitivity.report import SensitivityReport
from bitplan.sensitivity.weight_gradients import differentiable
from contest import PALETTE, SIZES, Contest, plan_of
from machine import describe
from tournament import DEFAULT, ENTRANTS, RESULTS, Tournament, by_example

PATH = RESULTS / "around-plans.json"
SHARES = (0.25, 0.5, 1.0)
LEAST = 0.1  # of a unit's own loss
Floats = npt.NDArray[np.float64]


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
    calibration = prepared.calibration.estimate
    held_out = load_calibration(prepared.loaded, tournament.evaluation, tokens=tournament.entrant.evaluate, seed=1).verify
    contest = Contest(network, prepared.renderings)
    with torch.no_grad():
        known, unseen = ([run(network, batch) for batch in part.batches] for part in (calibration, held_out))

    def measure(assignment: dict[str, str]) -> dict[str, Any]:
        with contest.rounded(assignment), torch.no_grad():
            return by_example(network, held_out, unseen)

    found = {}
    for size in SIZES:
        plan = plan_for(contest, report, size)
        if plan is None:
            continue
        products, same_data = products_around(contest, report, plan, calibration, known)
        chosen = [(report.units.index(unit), report.formats.index(fmt)) for unit, fmt in plan.items()]
        before = measure(plan)
        one: dict[str, Any] = {
            "predicted": sum(report.loss[at] for at in chosen),
            "with_products": sum(report.loss[at] + products[at] / 2 for at in chosen),
            "same_data": same_data,
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


def products_around(
    contest: Contest, report: SensitivityReport, plan: dict[str, str], part: Part, references: list[Tensor]
) -> tuple[Floats, float]:
    """`products` of all units and formats (units, formats), zero where nothing is free, and what the plan loses on `part`."""
    network = contest.network
    lost, count = 0.0, 0
    with contest.rounded(plan), differentiable(network) as by_unit:
        named = zip(network.inventory.units, by_unit, strict=True)
        mine = {unit.name: weights for unit, weights in named if unit.name in plan}
        gradients = {name: [torch.zeros_like(weight) for weight in weights] for name, weights in mine.items()}
        totals = [total for totals in gradients.values() for total in totals]
        for batch, reference in zip(part.batches, references, strict=True):
            each = divergence(network, reference, run(network, batch), batch)
            lost, count = lost + float(each.detach().sum()), count + len(each)
            found = torch.autograd.grad(each.sum(), [w for weights in mine.values() for w in weights], allow_unused=True)
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:  # an expert that no token reached has none
                    total += gradient
    products = np.zeros(report.loss.shape)
    for unit in contest.free:
        u = report.units.index(unit.name)
        for fmt in PALETTE:
            matrices = zip(gradients[unit.name], unit_weights(network.module, unit), contest.renderings(unit, fmt), strict=True)
            moved = sum(
                float((gradient.flatten(1)[rows].T * delta).sum())
                for gradient, weight, made in matrices
                for rows, delta in rendered_slices(made, weight)
            )
            products[u, report.formats.index(fmt)] = moved / count
        own = u, report.formats.index(plan[unit.name])
        products[own] -= 2 * report.loss[own]
    return products, lost / count


if __name__ == "__main__":
    main()
