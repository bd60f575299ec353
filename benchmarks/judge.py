"""Does a metric rank single units as the measured divergence does?

Units are drawn at random; each is put alone in each format and the divergence of the model's output is measured, on the
tokens that the metrics were estimated on. Reported for each metric: Spearman's rank correlation with the measured numbers
within a format and over all pairs, and the median ratio of measured to estimated.

    python benchmarks/judge.py MODEL --calibration SOURCE [--units N] [--tokens N] [--judge-tokens N] [--name NAME]
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from bitplan.allocator import ProfileRequest, home_folder, profile_model
from bitplan.allocator.prepared import prepare
from bitplan.allocator.profile import load_model
from bitplan.allocator.solve import versions
from bitplan.allocator.source import resolve
from bitplan.sensitivity import METRICS
from bitplan.sensitivity.calibration import Part
from bitplan.sensitivity.study import Study
from machine import describe
from quality import PALETTES

JUDGED = ("int2-g64-asym", "int3-g64-asym", "int4-g64-asym")
ESTIMATES = ("kl_fisher", "output_error", "weight_error")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default="smollm2-135m")
    arguments.add_argument("--calibration")
    arguments.add_argument("--units", type=int, default=30)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--judge-tokens", type=int, default=1024)
    arguments.add_argument("--name", default="smollm2-135m")
    options = arguments.parse_args()
    home = home_folder()
    request = ProfileRequest(options.model, formats=PALETTES["g64"], calibration=options.calibration, tokens=options.tokens)
    reports = {metric: profile_model(replace(request, metric=metric), home=home) for metric in ESTIMATES}
    prepared = prepare(request, load_model(resolve(options.model), home), home)
    network, calibration = prepared.loaded.network, prepared.calibration
    assert calibration is not None
    linear = [unit for unit in network.inventory.units if unit.role not in ("embedding", "head")]
    units = tuple(random.Random(0).sample(linear, min(options.units, len(linear))))
    few = replace(network, inventory=replace(network.inventory, units=units))
    batches: list[dict[str, object]] = []
    part = calibration.estimate
    size = max(1, round(options.judge_tokens / options.tokens * len(part.batches)))
    judged = Part(part.batches[:size], part.digests)
    estimate = METRICS["divergence"].estimate(Study(few, prepared.renderings, judged, JUDGED))
    rows = [reports["kl_fisher"].units.index(unit.name) for unit in units]
    columns = [reports["kl_fisher"].formats.index(fmt) for fmt in JUDGED]
    for metric, report in reports.items():
        table = report.loss[np.ix_(rows, columns)]
        within = {fmt: float(spearmanr(table[:, f], estimate.loss[:, f]).statistic) for f, fmt in enumerate(JUDGED)}
        ratio = estimate.loss / np.maximum(table, 1e-300)
        batches.append(
            {
                "metric": metric,
                "rank_correlation": within,
                "rank_correlation_all_pairs": float(spearmanr(table.ravel(), estimate.loss.ravel()).statistic),
                "median_measured_over_estimated": {fmt: float(np.median(ratio[:, f])) for f, fmt in enumerate(JUDGED)},
            }
        )
        print(json.dumps(batches[-1]), flush=True)
    document = {
        "question": "does a metric rank single units as the measured divergence does",
        "command": f"python benchmarks/judge.py {options.model} --units {options.units} --tokens {options.tokens} "
        f"--judge-tokens {options.judge_tokens}",
        "calibration": "shipped" if options.calibration is None else Path(options.calibration).name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
        "units": [unit.name for unit in units],
        "metrics": batches,
        "measured": estimate.loss.tolist(),
    }
    target = Path(__file__).parent / "results" / f"judge-{options.name}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
