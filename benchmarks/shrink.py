"""Would shrinking kl_fisher towards a steadier estimate rank units better? From the tournament's profiles and measured units.

Losses are mixed as kl_fisher^(1 - a) * other^a; a rank correlation does not ask for the scale. `other` is K-FAC, which takes
inputs and gradients as independent, or the trace of the Fisher information. Measures nothing new.

    python benchmarks/shrink.py [MODEL ...] --data DIR
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from bitplan.allocator import inspect_model
from bitplan.allocator.profile import stored_report
from bitplan.allocator.solve import versions
from machine import describe
from tournament import DEFAULT, ENTRANTS, JUDGED, RESULTS, Tournament

TOWARDS = ("kfac", "fisher_trace")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def ranks(name: str, data: Path) -> dict[str, Any]:
    """other -> share -> rank correlation over all units and formats measured, and over each format."""
    tournament = Tournament(name, ENTRANTS[name], data, (), float("inf"))
    inventory = inspect_model(tournament.model, home=tournament.home)
    measured = tournament.document["units"]["measured"]
    keys = [tuple(key.rsplit(" ", 1)) for key in measured]
    truth, column = np.array(list(measured.values())), np.array([fmt for _, fmt in keys])

    def table(metric: str) -> Any:
        report = stored_report(replace(tournament.request, metric=metric), inventory, tournament.home)
        assert report is not None, f"{metric} has not been profiled; run the tournament"
        return np.array([report.loss[report.units.index(unit), report.formats.index(fmt)] for unit, fmt in keys])

    found: dict[str, Any] = {}
    for other in TOWARDS:
        for share in SHARES:
            mixed = table(DEFAULT) ** (1 - share) * table(other) ** share
            one = {"all": float(spearmanr(mixed, truth).statistic)}
            for fmt in JUDGED:
                one[fmt] = float(spearmanr(mixed[column == fmt], truth[column == fmt]).statistic)
            found.setdefault(other, {})[str(share)] = one
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", help=f"of {', '.join(ENTRANTS)}; default: all that have been played")
    arguments.add_argument("--data", type=Path, required=True)
    options = arguments.parse_args()
    names = options.models or [name for name in ENTRANTS if (RESULTS / f"tournament-{name}.json").exists()]
    document = {
        "question": "would shrinking kl_fisher towards a steadier estimate rank units better",
        "command": f"python benchmarks/shrink.py {' '.join(names)}",
        "found": {name: ranks(name, options.data) for name in names},
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
    }
    (RESULTS / "shrink-tournament.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
