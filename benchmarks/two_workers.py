"""Do two workers share one profile? A Llama-shaped model of random weights is profiled over PostgreSQL by one worker and by two.

    python benchmarks/two_workers.py [--layers 30] [--width 256] [--tokens 512] [--formats A,B] [--repeats 1]

Reported are the seconds from asking to the report, who did how many of the pieces of work and for how long, and whether
all tables are the same to the last bit. On two cores that others use too, the ratio of the seconds says little; on four or
more, two workers should reach 1.6 times the throughput of one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitplan.allocator.solve import versions
from bitplan.api.jobs.engine import Engine
from bitplan.api.jobs.queue import Jobs
from bitplan.api.jobs.supervisor import Supervisor
from bitplan.api.settings import Settings
from bitplan.api.store import Store
from machine import describe
from streaming import write_model

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from postgres import fresh_database


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--layers", type=int, default=30)
    arguments.add_argument("--width", type=int, default=256)
    arguments.add_argument("--tokens", type=int, default=512)
    arguments.add_argument("--formats", default="int3-g64-asym,int4-g64")
    options = arguments.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: one core each
    with tempfile.TemporaryDirectory(prefix="bitplan-workers-") as folder:
        root = Path(folder)
        parameters = write_model(root / "model", options.layers, options.width)
        body = {
            "model": str(root / "model"),
            "formats": options.formats.split(","),
            "tokens": options.tokens,
            "stream": True,
        }
        runs = {count: run(count, root / f"home-{count}", body) for count in (1, 2)}
    tables = [runs[count].pop("table") for count in (1, 2)]
    document = {
        "question": "do two workers share one profile evenly, and do they make the same table",
        "command": f"python benchmarks/two_workers.py --layers {options.layers} --width {options.width} "
        f"--tokens {options.tokens} --formats {options.formats}",
        "parameters": parameters,
        "one worker": runs[1],
        "two workers": runs[2],
        "throughput_ratio": runs[1]["seconds"] / runs[2]["seconds"],
        "same_table": tables[0] == tables[1],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**describe(), "load_before": os.getloadavg()[0]},
        "versions": versions(),
    }
    print(json.dumps(document, indent=1))
    (Path(__file__).parent / "results" / "two-workers.json").write_text(json.dumps(document, indent=1) + "\n")


def run(count: int, home: Path, body: dict[str, Any]) -> dict[str, Any]:
    """One profile by `count` workers that are all alive before it is asked for."""
    journal = home.with_suffix(".journal")
    os.environ["BITPLAN_JOURNAL"] = str(journal)
    with ExitStack() as stack:
        settings = Settings.from_environment(home, stack.enter_context(fresh_database()))
        store = stack.enter_context(closing(Store.open(settings.database_url)))
        jobs = Jobs(store, stack.enter_context(closing(Engine(settings.database_url))))
        for _ in range(count):
            stack.enter_context(Supervisor(settings))
        while len(store.workers.list()) < count:
            time.sleep(0.1)
        wait(jobs, jobs.submit("inspect", {"model": body["model"], "stream": True}).id)
        began = time.perf_counter()
        done = wait(jobs, jobs.submit("profile", body).id)
        seconds = time.perf_counter() - began
        assert done.result is not None, done.error
        report = store.profile(done.result["profile_id"])[0].to_json()
    lines = [line.split("\t") for line in journal.read_text().splitlines()]
    pieces = Counter(pid for _, _, pid in lines)
    shared = Counter(pid for name, _, pid in lines if "forward" not in name and "backward" not in name)
    return {
        "seconds": seconds,
        "pieces_by_worker": sorted(pieces.values(), reverse=True),
        "rounding_and_sums_by_worker": sorted(shared.values(), reverse=True),
        "done_twice": len(lines) - len({name for name, _, _ in lines}),
        "table": {key: report[key] for key in ("loss", "stderr", "units", "formats")},
    }


def wait(jobs: Jobs, job_id: str) -> Any:
    while not (job := jobs.get(job_id)).finished:
        time.sleep(0.05)
    return job


if __name__ == "__main__":
    main()
