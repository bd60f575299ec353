"""Does killing lose anything? The service under `kill -9` of worker, service process and both, at random moments of real work.

    python benchmarks/durability.py MODEL [--kills 30] [--databases sqlite,postgresql] [--tokens N] [--formats A,B]

Over HTTP the service is asked, round after round and each round with another seed, for a streamed profile and one in memory,
plans of two metrics with verification, their executed folders, and a sweep over two budgets and two metrics. Meanwhile an
outsider kills after random pauses. Then every job must have ended, the journal may name no piece of work twice, the store
must hold exactly the plans that were asked for, and every file that can be seen must be whole.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitplan.allocator.solve import versions
from bitplan.api.schema import JobView
from machine import describe

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from battered import Service, look_for_damage

TARGETS = ("worker", "api", "both")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--databases", default="sqlite,postgresql")
    arguments.add_argument("--tokens", type=int, default=256)
    arguments.add_argument("--formats", default="int3-g64-asym,int4-g64")
    arguments.add_argument("--longest-pause", type=float, default=6.0, help="seconds at work before a kill, at most")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--minutes", type=float, default=60.0, help="no more kills after so long, a database")
    options = arguments.parse_args()
    document: dict[str, Any] = {
        "question": "does killing the worker, the service or both lose or repeat any work",
        "command": f"python benchmarks/durability.py {Path(options.model).name} --kills {options.kills} "
        f"--tokens {options.tokens} --formats {options.formats} --longest-pause {options.longest_pause:g} --seed {options.seed}",
        "model": Path(options.model).name,
        "runs": {},
    }
    for database in options.databases.split(","):
        document["runs"][database] = run(database, options)
        print(json.dumps({database: document["runs"][database]}, indent=1), flush=True)
    document |= {"date": datetime.now(UTC).date().isoformat(), "machine": describe(), "versions": versions()}
    (Path(__file__).parent / "results" / "durability.json").write_text(json.dumps(document, indent=1) + "\n")


def run(database: str, options: argparse.Namespace) -> dict[str, Any]:
    """All kills over one database, and what was found afterwards."""
    chance, began = random.Random(options.seed), time.perf_counter()
    with fresh(database) as (root, url), Service(root, url) as service:
        killer = Killer(service, chance, options.kills, options.longest_pause, options.minutes)
        jobs: list[JobView] = []
        rounds = 0
        killer.start()
        while killer.is_alive() or not rounds:
            jobs += work(service, options, rounds)
            rounds += 1
        killer.join()
        damage = look_for_damage(service, jobs, expected_plans=PLANS_A_ROUND * rounds)
        ends = Counter(f"{job.kind} {job.status}" for job in jobs)
        return {
            "kills": dict(Counter(what for what, _ in killer.killed)),
            "kills_while_at_work_on": dict(Counter(stage for _, stage in killer.killed)),
            "rounds": rounds,
            "jobs": dict(ends),
            "failed": [job.error.detail for job in jobs if job.error is not None],
            "attempts_at_most": max(job.attempt for job in jobs),
            "pieces_of_work": len(service.done()),
            "damage": asdict(damage),
            "seconds": time.perf_counter() - began,
        }


PLANS_A_ROUND = 2 + 4


def work(service: Service, options: argparse.Namespace, number: int) -> list[JobView]:
    """One round of work, waited for."""
    mark, formats = f"{number}-", options.formats.split(",")
    body = {"model": options.model, "formats": formats, "tokens": options.tokens, "seed": number}
    streamed = service.ask("/v1/profiles", {**body, "stream": True}, mark + "profile")["id"]
    plans = [
        service.ask("/v1/plans", {**body, "metric": metric, "budget": "33%", "verify": True}, mark + metric)["id"]
        for metric in ("kl_fisher", "output_error")
    ]
    asked = {name: value for name, value in body.items() if name != "model"}
    asked |= {"models": [options.model], "budgets": ["27%", "40%"], "metrics": ["kl_fisher", "weight_error"]}
    sweep = service.ask("/v1/sweeps", asked, mark + "sweep")["job_id"]
    ended = service.wait([streamed, *plans, sweep], 3600)
    made = [str(job.result["plan_id"]) for job in ended if job.result is not None and "plan_id" in job.result]
    exports = [service.ask(f"/v1/plans/{plan}/exports", {"to": "bitplan"}, f"{mark}{plan}")["id"] for plan in made]
    return ended + service.wait(exports, 3600)


class Killer(threading.Thread):
    """Kills a random pause, at most `longest` seconds, after a worker finished something, and notes what was done by then."""

    def __init__(self, service: Service, chance: random.Random, kills: int, longest: float, minutes: float) -> None:
        super().__init__(daemon=True)
        self._service, self._chance, self._kills, self._longest = service, chance, kills, longest
        self._deadline = time.monotonic() + 60 * minutes
        self.killed: list[tuple[str, str]] = []

    def run(self) -> None:
        for number in range(self._kills):
            before = len(self._service.done())
            while len(self._service.done()) == before or not self._at_work():
                if time.monotonic() > self._deadline:
                    return
                time.sleep(0.1)
            time.sleep(self._chance.uniform(0.0, self._longest))
            what = TARGETS[number % len(TARGETS)]
            jobs = self._at_work()
            self._service.kill(what)
            progress = jobs[0]["progress"] if jobs else None
            stage = "nothing" if not jobs else f"{jobs[0]['kind']}: {progress['stage'] if progress else 'beginning'}"
            self.killed.append((what, stage))
            print(f"{number + 1}: killed {what} during {stage}", flush=True)

    def _at_work(self) -> list[dict[str, Any]]:
        """The jobs that a worker has in hand; those that only wait for others left out."""
        found = self._service.ask("/v1/jobs?status=running")["items"]
        return [job for job in found if job["kind"] not in ("plan", "sweep")]


@contextmanager
def fresh(database: str) -> Iterator[tuple[Path, str]]:
    """An empty folder, and the URL of an empty database."""
    with tempfile.TemporaryDirectory(prefix="bitplan-durability-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        if database == "sqlite":
            yield root, f"sqlite:///{root / 'home' / 'bitplan.db'}"
        else:
            from postgres import fresh_database

            with fresh_database() as url:
                yield root, url


if __name__ == "__main__":
    main()
