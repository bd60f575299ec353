"""What does a profile cost, and planning again? Wall time by stage and peak memory, in a fresh process; and beside it a plain
forward and backward pass over the tokens of the estimate, gradients of weights included.

python benchmarks/cost.py [MODEL] [--calibration SOURCE] [--tokens N] [--name NAME]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bitplan.allocator import PlanRequest, ProfileRequest, home_folder, inspect_model, plan_from_profile, profile_model
from bitplan.allocator.prepared import prepare
from bitplan.allocator.profile import load_model
from bitplan.allocator.solve import versions
from bitplan.allocator.source import resolve
from machine import describe
from plain import plain_pass

BUDGETS = ("20%", "22%", "25%", "30%", "40%", "50%")


def seconds_of_plain_pass(request: ProfileRequest, home: Path) -> float:
    """Seconds of one forward and backward pass."""
    prepared = prepare(request, load_model(resolve(request.model), home), home)
    started = time.perf_counter()
    plain_pass(prepared)
    return time.perf_counter() - started


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", nargs="?", default="smollm2-135m")
    arguments.add_argument("--calibration")
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--name", default="smollm2-135m")
    options = arguments.parse_args()
    stages: dict[str, float] = {}
    latest: tuple[str, float] = ("", time.perf_counter())

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal latest
        (before, since), latest = latest, (stage, time.perf_counter())
        if before:
            stages[before] = stages.get(before, 0.0) + latest[1] - since

    with tempfile.TemporaryDirectory() as fresh:
        home = Path(fresh)
        models = home_folder() / "models"  # the float rebuild of a GGUF is made once, not part of profiling
        if models.exists():
            (home / "models").symlink_to(models)
        request = ProfileRequest(options.model, calibration=options.calibration, tokens=options.tokens)
        started = time.perf_counter()
        report = profile_model(request, home=home, progress=progress)
        total = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        plain = seconds_of_plain_pass(request, home)
        inventory = inspect_model(options.model, home=home)
        again = []
        for budget in BUDGETS:
            started = time.perf_counter()
            plan_from_profile(inventory, report, PlanRequest(request, budget))
            again.append(1000 * (time.perf_counter() - started))
    document = {
        "question": "what does a profile cost, and planning again",
        "command": f"python benchmarks/cost.py {options.model} --tokens {options.tokens}",
        "calibration": "shipped" if options.calibration is None else Path(options.calibration).name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": versions(),
        "units": len(report.units),
        "formats": report.formats,
        "profile_seconds": total,
        "stage_seconds": stages,
        "plain_pass_seconds": plain,
        "peak_memory_bytes": peak,
        "planning_again_milliseconds": dict(zip(BUDGETS, again, strict=True)),
    }
    print(json.dumps(document, indent=1))
    target = Path(__file__).parent / "results" / f"cost-{options.name}.json"
    target.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
