"""How much does the estimate depend on what is drawn? Labels drawn from the model against random directions with signs.

For one of the tournament's models: kl_fisher by one draw a batch, eight times with other seeds, for both kinds of draws, and by
the four draws that it takes by itself. Reported are the standard deviation over seeds relative to the mean, averaged over units
and formats of 2 to 4 bits, and Spearman's rank correlation of a single draw with the measured divergence of all units.

    python benchmarks/scatter.py [resnet20] --data DIR
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
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from bitplan.allocator.solve import versions
from bitplan.sensitivity import METRICS, flow
from bitplan.sensitivity.flow import Flow, Objective, estimate_flow
from bitplan.sensitivity.metrics import kl_fisher
from bitplan.sensitivity.network import Batch, Network, sampled_objective
from bitplan.sensitivity.study import Study
from contest import Contest
from machine import describe
from tournament import ENTRANTS, JUDGED, RESULTS, Tournament

SEEDS = 8


def labels_objective(network: Network, output: Tensor, batch: Batch, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """The sum of log p(y), y drawn from the output itself."""
    logits = output.flatten(0, -2)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(-1)
    return -functional.cross_entropy(logits, drawn, reduction="sum")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default="resnet20")
    arguments.add_argument("--data", type=Path, required=True)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    prepared = Tournament(options.model, ENTRANTS[options.model], options.data, (), float("inf")).prepared()
    network, renderings = prepared.loaded.network, prepared.renderings
    assert prepared.calibration is not None
    part, free = prepared.calibration.estimate, Contest(network, renderings).free
    rows = [network.inventory.units.index(unit) for unit in free]
    renderings.make([(unit, fmt) for unit in network.inventory.units for fmt in JUDGED])
    study = Study(network, renderings, part, JUDGED)

    def table(objective: Objective, seed: int) -> Any:
        return estimate_flow(Flow(kl_fisher.sums, objective), replace(study, seed=1000 * seed)).loss[rows]

    truth = METRICS["divergence"].estimate(study).loss[rows]
    found: dict[str, dict[str, float]] = {}
    usual = flow.DRAWS[network.inventory.outputs]
    for name, objective, draws in (
        ("drawn labels", labels_objective, 1),
        ("random signs", sampled_objective, 1),
        ("random signs, as shipped", sampled_objective, usual),
    ):
        flow.DRAWS[network.inventory.outputs] = draws
        tables = np.array([table(objective, seed) for seed in range(SEEDS)])
        ranks = [np.mean([spearmanr(one[:, f], truth[:, f]).statistic for f in range(len(JUDGED))]) for one in tables]
        found[name] = {
            "draws": draws,
            "relative_scatter": float((tables.std(axis=0, ddof=1) / tables.mean(axis=0)).mean()),
            "rank_correlation": float(np.mean(ranks)),
        }
        print(name, found[name], flush=True)
    document = {
        "question": "how much does the estimate depend on what is drawn",
        "command": f"python benchmarks/scatter.py {options.model}",
        "model": options.model,
        "examples": part.examples,
        "seeds": SEEDS,
        "found": found,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
    }
    (RESULTS / f"scatter-{options.model}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
