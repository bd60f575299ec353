"""Does the service stay upright under ten thousand random requests? schemathesis over its whole description, in process.

    python benchmarks/hostile.py [--requests 10000] [--examples 60] [--seed 1] [--out benchmarks/results/hostile.json]

The service has made-up models (tests/fakes.py), a profile, a plan and a worker that lives; every job is called off at once.
An answer fails when its status is 500 or above, is not described for its route, or its body or headers are not as
described. `coverage` sends what lies at the borders of every schema, `fuzzing` random requests, `stateful` chains of
requests that follow the description's links. Rounds with other seeds follow until there were enough requests; the results
so far are written after each. Exit status 1 when anything failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from machine import describe

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import fuzz

RESULTS = Path(__file__).parent / "results" / "hostile.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=60, help="random requests for each operation, and chains, a round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    began = time.monotonic()
    done, rounds = fuzz.Fuzzed(), 0
    with tempfile.TemporaryDirectory() as folder, fuzz.fuzzed_service(Path(folder) / "home") as service:
        while done.requests < options.requests:
            done = done.and_also(fuzz.fuzz(service.app, examples=options.examples, seed=options.seed + rounds))
            rounds += 1
            document = results(options, done, rounds, time.monotonic() - began)
            options.out.write_text(json.dumps(document, indent=2) + "\n")
            print(f"round {rounds}: {done.requests} requests, {done.failures.total()} failures", flush=True)
    print(json.dumps(document, indent=2))
    if done.failures:
        sys.exit(1)


def results(options: argparse.Namespace, done: fuzz.Fuzzed, rounds: int, seconds: float) -> dict[str, Any]:
    command = f"--requests {options.requests} --examples {options.examples} --seed {options.seed}"
    return {
        "command": f"python benchmarks/hostile.py {command}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("bitplan", "fastapi", "schemathesis")},
        },
        "seconds": round(seconds, 1),
        "rounds": rounds,
        "requests": done.requests,
        "operations": len(done.operations),
        "requests_by_phase": dict(sorted(done.phases.items())),
        "answers_by_status": {str(status): count for status, count in sorted(done.statuses.items())},
        "checks": list(fuzz.CHECKS),
        "failures": dict(done.failures.most_common()),
    }


if __name__ == "__main__":
    main()
