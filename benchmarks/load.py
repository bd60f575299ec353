"""How fast is the service, and does it stay so? A server on loopback, started as users start it, and a client beside it.

    python benchmarks/load.py [--seconds 30] [--rate 200] [--connections 32] [--processes 2] [--requests 50000] [--only NAME]

held       at which rates the goal for plans is kept, from slow to fast until it is missed
plans      plans from a stored profile of 210 units x 6 formats, every budget another, in an open loop
large      the same for 44,544 units, one after the other
lists      10,000 stored plans listed, filtered, sorted and paged through
repeated   1,000 plans asked for again with the Idempotency-Key that they were made under
memory     resident memory of the server while 50,000 more requests are answered as fast as it can

Latencies are counted from when a request was due (see `open_loop.py`). There is no worker, which would measure when it has
something to measure and take the cores. The model folders are made up (`synthetic.py`); what is solved, stored and sent is real.
How fast a core is at the time is noted before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil

from bitplan.allocator import PlanRequest, check_budget, known_inventory
from bitplan.allocator.solve import versions
from bitplan.api.settings import store_url
from bitplan.api.store import Store
from machine import describe
from synthetic import PALETTE, dense_units, expert_units, keep, model_folder

RESULTS = Path(__file__).parent / "results" / "load.json"
GOALS = {"plans": 150.0, "large": 1000.0, "lists": 50.0, "repeated": 150.0}  # milliseconds at the 99th percentile
STORED = 10_000
SAMPLE_SECONDS = 1.0
RATES = (25, 50, 75, 100, 125, 150, 175, 200)  # plans a second
REPEATED = 1000
HELD_SECONDS = 6
BEYOND = 1_000_000  # the number of a plan that no other part asks for
Requests = list[tuple[str, str, Any, dict[str, str]]]  # method, path, body, headers


@dataclass(frozen=True)
class Server:
    """A service under load; `pid` is that of the process which was started and answers alone, or whose children do."""

    host: str
    port: int
    pid: int
    home: Path

    def ask(self, requests: Requests, connections: int, rate: float | None) -> dict[str, Any]:
        """Have the client send the requests; its result."""
        specification = {
            "host": self.host, "port": self.port, "connections": connections, "rate": rate, "requests": requests
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("open_loop.py"))]
        done = subprocess.run(command, input=json.dumps(specification), stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def cpu_seconds(self) -> float:
        return float(sum(times.user + times.system for times in (process.cpu_times() for process in self._processes())))

    def resident_bytes(self) -> int:
        return sum(int(process.memory_info().rss) for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        own = psutil.Process(self.pid)
        return [own, *own.children(recursive=True)]


@contextmanager
def serving(home: Path, processes: int) -> Iterator[Server]:
    """`bitplan serve` on a free port."""
    environment = {**os.environ, "BITPLAN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bitplan.api.cli", "serve", "--port", "0", "--no-worker", "--processes", str(processes)]
    log = (home / "server.log").open("w")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=log, text=True)
    try:
        assert process.stderr is not None
        said = next(found for line in process.stderr if (found := re.search(r"serves http://([\d.]+):(\d+)", line)))
        Thread(target=lambda: log.writelines(process.stderr or ()), daemon=True).start()
        yield Server(said[1], int(said[2]), process.pid, home)
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@dataclass(frozen=True)
class Model:
    """A profiled model and the budgets it can be planned for."""

    path: str
    least: int
    most: int

    def plans(self, first: int, count: int) -> Requests:
        """Requests number `first` and following, each with a budget of its own."""
        span, stride = self.most - self.least, 7_777_777
        while np.gcd(span, stride) > 1:
            stride += 1
        budgets = (str(self.least + number * stride % span) for number in range(first, first + count))
        return [("POST", "/v1/plans", {"model": self.path, "formats": PALETTE, "budget": budget}, {}) for budget in budgets]


def prepare(home: Path) -> dict[str, Model]:
    """Both models, inspected and profiled."""
    models = {}
    with closing(Store.open(store_url(home))) as store:
        for name, units in (("dense", dense_units()), ("experts", expert_units())):
            model = model_folder(home / "models" / name)
            keep(model, units, home, store)
            found = known_inventory(str(model), home)
            assert found is not None
            built = check_budget(found, PlanRequest(_profile(str(model)), "100%"))
            models[name] = Model(str(model), built.minimum_bytes, built.maximum_bytes)
    return models


def _profile(model: str) -> Any:
    from bitplan.api.schema import ProfileBody

    return ProfileBody(model=model, formats=PALETTE).profile_request()


def measured(server: Server, requests: Requests, connections: int, rate: float | None, status: int = 201) -> dict[str, Any]:
    """Send and summarise. Raises RuntimeError unless every answer has the status."""
    cpu, (stolen, before) = server.cpu_seconds(), processor_seconds()
    result = server.ask(requests, connections, rate)
    cpu, (stolen_since, after) = server.cpu_seconds() - cpu, processor_seconds()
    answers = result["answers"]
    wrong = [answer[:2] for answer in answers if answer[1] != status]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(answers)} answers were not {status}, such as {wrong[0]}")
    if status == 201 and len({answer[3] for answer in answers}) != len(answers):
        raise RuntimeError("two budgets got the same plan")
    milliseconds = np.array([answer[0] for answer in answers])
    quantiles = {f"p{q:g}_ms": round(float(np.percentile(milliseconds, q)), 2) for q in (50, 90, 99, 99.9)}
    return {
        "requests": len(answers),
        "connections": connections,
        "rate": rate,
        "answered_a_second": round(len(answers) / result["seconds"], 1),
        **quantiles,
        "max_ms": round(float(milliseconds.max()), 2),
        "server_cpu_ms_a_request": round(1000 * cpu / len(answers), 3),
        "stolen_percent": round(100 * (stolen_since - stolen) / (after - before), 1),
        "bytes_an_answer": int(np.mean([answer[2] for answer in answers])),
        "client_late_ms": round(result["client_late_ms"], 2),
        "load_average": round(os.getloadavg()[0], 2),
    }


def processor_seconds() -> tuple[float, float]:
    """What a host has taken of this machine's processor time (zero where nobody says), and all of that time."""
    times = psutil.cpu_times()._asdict()
    return times.get("steal", 0.0), sum(seconds for name, seconds in times.items() if not name.startswith("guest"))


def held(server: Server, model: Model, connections: int) -> dict[str, Any]:
    """The greatest rate at which the goal for plans is kept, and the quantile at each rate that was tried."""
    first, found = 2 * BEYOND, dict[str, float]()
    for rate in RATES:
        requests = model.plans(first, rate * HELD_SECONDS)
        first += len(requests)
        found[str(rate)] = measured(server, requests, connections, float(rate))["p99_ms"]
        if found[str(rate)] > GOALS["plans"]:
            break
    kept = [int(rate) for rate, milliseconds in found.items() if milliseconds <= GOALS["plans"]]
    return {"plans_a_second": max(kept, default=0), "p99_ms_at": found}


def seconds_of_additions() -> float:
    """How slow one core is now: 10^7 additions in a Python loop."""
    return round(timeit.timeit("total += 1", "total = 0", number=10_000_000), 3)


def listings(model: Model) -> Requests:
    """What a dashboard asks of the list, over and over."""
    name = model.path.replace("/", "%2F")
    queries = (
        "",
        "?limit=200",
        f"?model={name}",
        f"?model={name}&target=native&metric=kl_fisher",
        "?sort=bytes",
        "?sort=-loss&limit=100",
        "?sort=stored_bits_per_weight&target=native",
        "?verified=true",
        f"?model={name}&sort=-bytes",
        "?target=vllm",
        "?budget=1GiB",
    )
    return [("GET", f"/v1/plans{queries[number % len(queries)]}", None, {}) for number in range(1000)]


def memory(server: Server, model: Model, first: int, count: int, connections: int) -> dict[str, Any]:
    """Resident memory over `count` requests, half of them for plans that are there already."""
    requests: Requests = []
    for number in range(0, count, 2):
        (asked,) = model.plans(first + number // 2, 1)
        requests += [asked, asked]
    samples: list[tuple[float, int]] = []
    stop, began = Event(), time.perf_counter()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            samples.append((time.perf_counter() - began, server.resident_bytes()))

    watcher = Thread(target=watch)
    watcher.start()
    result = server.ask(requests, connections, None)
    stop.set()
    watcher.join()
    seconds = time.perf_counter() - began
    statuses = {status: sum(answer[1] == status for answer in result["answers"]) for status in (200, 201)}
    if sum(statuses.values()) != count:
        raise RuntimeError(f"only {statuses} of {count} requests were answered as they should")
    warm = np.array([(moment * count / seconds, resident) for moment, resident in samples if moment > 0.2 * seconds])
    slope = float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0])
    return {
        "requests": count,
        "answered_a_second": round(count / seconds, 1),
        "first_mib": round(warm[0, 1] / 2**20, 1),
        "last_mib": round(warm[-1, 1] / 2**20, 1),
        "largest_mib": round(max(resident for _, resident in samples) / 2**20, 1),
        "bytes_a_request": round(slope, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--processes", type=int, default=2, help="API processes")
    parser.add_argument("--requests", type=int, default=50_000, help="of the part `memory`")
    parser.add_argument("--only", action="append", choices=["held", "plans", "large", "lists", "repeated", "memory"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bitplan-load-") as folder:
        before = seconds_of_additions()
        results = run(Path(folder), options)
    document = {
        "command": "python benchmarks/load.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe() | {"seconds_of_additions": [before, seconds_of_additions()]},
        "versions": versions(),
        "results": results,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def run(home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every part that is asked for, in an order in which each finds what it needs."""
    models = prepare(home)
    dense, experts = models["dense"], models["experts"]
    count, connections = int(options.rate * options.seconds), options.connections
    results: dict[str, Any] = {}

    with serving(home, options.processes) as server:
        server.ask(dense.plans(0, 100), connections, None)

        def again() -> dict[str, Any]:
            asked = enumerate(dense.plans(BEYOND, REPEATED))
            keyed: Requests = [(*request[:3], {"idempotency-key": f"load-{n}"}) for n, request in asked]
            server.ask(keyed, connections, None)
            return measured(server, keyed, connections, options.rate)

        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "held": lambda: held(server, dense, connections),
            "plans": lambda: measured(server, dense.plans(100, count), connections, options.rate),
            "repeated": again,
            "lists": lambda: measured(server, listings(dense), 8, 50.0, 200),
            "memory": lambda: memory(server, dense, STORED + 100 + count, options.requests, connections),
            "large": lambda: measured(server, experts.plans(0, 101), 1, None),
        }
        for name, part in parts.items():
            if options.only and name not in options.only:
                continue
            if name == "lists":
                server.ask(dense.plans(100 + count, STORED - count), connections, None)
            results[name] = part()
            show(name, results[name])
    return results


def show(name: str, result: dict[str, Any]) -> None:
    goal = GOALS.get(name)
    verdict = "" if goal is None else f"   goal p99 <= {goal:g} ms: {'met' if result['p99_ms'] <= goal else 'MISSED'}"
    print(f"{name:9}", *(f"{key} {value}" for key, value in result.items()), verdict, flush=True)


if __name__ == "__main__":
    main()
