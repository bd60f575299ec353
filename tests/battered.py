"""A service that is killed: started as users start it, asked over HTTP, and looked at afterwards, file by file.

Shared by tests and by `benchmarks/durability.py`. The service's process is started again when it was killed, as an init
system would do; the worker is the service's own affair.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors import safe_open

from bitplan.api.schema import JobView
from bitplan.api.store import Store

SERVE = "import sys; from bitplan.api.serving import serve; serve('127.0.0.1', int(sys.argv[1]), sys.argv[2], lambda at: None)"
RETRIED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, json.JSONDecodeError)


@dataclass
class Service:
    """`bitplan serve` over a home and a database, in a process of its own."""

    root: Path
    database_url: str
    port: int = field(default_factory=lambda: free_port())
    started: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    def __enter__(self) -> Service:
        self.root.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        workers = self.workers()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for worker in workers:  # the cord is cut: they end by themselves, but nobody should wait for that
            with suppress(psutil.Error):
                worker.kill()

    def start(self) -> None:
        environment = {**os.environ, "BITPLAN_HOME": str(self.home), "BITPLAN_JOURNAL": str(self.journal)}
        with (self.root / "log").open("ab") as log:
            command = [sys.executable, "-c", SERVE, str(self.port), self.database_url]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self.started += 1

    def workers(self) -> list[psutil.Process]:
        """The worker processes: children of the service, or orphans that still serve its home."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "bitplan.api.jobs.worker" in line and str(self.home) in line:
                found.append(process)
        return found

    def kill(self, what: str) -> None:
        """kill -9 of "worker", "api" or "both"; the service's process is started again."""
        if what in ("api", "both"):
            assert self.process is not None
            self.process.send_signal(signal.SIGKILL)
        if what in ("worker", "both"):
            for worker in self.workers():
                with suppress(psutil.Error):
                    worker.kill()
        if what in ("api", "both"):
            assert self.process is not None
            self.process.wait()
            self.start()

    def ask(self, path: str, body: Any = None, key: str | None = None, seconds: float = 120.0) -> Any:
        """The answer to a GET, or to a POST with a body, asked again while nobody answers."""
        deadline = time.monotonic() + seconds
        while True:
            headers = {"content-type": "application/json"} | ({"idempotency-key": key} if key else {})
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
            try:
                with urllib.request.urlopen(request, timeout=20) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code not in (409, 429, 503) or time.monotonic() > deadline:
                    raise AssertionError(f"{path}: {error.code} {error.read()[:500]!r}") from error
            except RETRIED:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def done(self) -> list[str]:
        """The finished pieces of work, as the journal has them."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [line.partition("\t")[0] for line in lines]

    def wait(self, jobs: Iterable[str], seconds: float = 400.0) -> list[JobView]:
        """The jobs once they have ended."""
        deadline, ids = time.monotonic() + seconds, list(jobs)
        while True:
            views = [JobView.model_validate(self.ask(f"/v1/jobs/{job}")) for job in ids]
            if all(view.finished for view in views):
                return views
            assert time.monotonic() < deadline, [(view.kind, view.status, view.progress, view.attempt) for view in views]
            time.sleep(0.1)


@dataclass(frozen=True)
class Damage:
    """What was found afterwards; all empty is well."""

    done_twice: list[str]
    half_written: list[str]
    lost: list[str]
    unknown: list[str]

    def __bool__(self) -> bool:
        return bool(self.done_twice or self.half_written or self.lost or self.unknown)


def look_for_damage(service: Service, jobs: list[JobView], expected_plans: int) -> Damage:
    """Everything that a kill may have left: work done twice, files that are not whole, plans lost or made twice."""
    twice = [name for name, count in Counter(service.done()).items() if count > 1]
    with closing(Store.open(service.database_url)) as store:
        stored = [plan.id for plan in store.plans(limit=200).items]
        asked = {str(job.result["plan_id"]) for job in jobs if job.result is not None and "plan_id" in job.result}
        for job in jobs:
            if job.kind == "sweep":
                asked |= {cell.plan.id for cell in store.sweeps.of_job(job.id).cells if cell.plan is not None}
        unknown = [f"{len(stored)} plans where {expected_plans} were asked for"] if len(stored) != expected_plans else []
        unknown += [job.id for job in store.jobs.active()]
        for plan_id in stored:
            store.plan(plan_id)
        lost = sorted(asked - set(stored))
    return Damage(twice, broken_files(service.home), lost, unknown)


def broken_files(home: Path) -> list[str]:
    """Files that are visible (no dot or `.tmp` in their names) and cannot be read to their end."""
    found = []
    for path in home.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(home).parts) or path.suffix == ".tmp"
        if hidden or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  (it is no dictionary)
                        opened.get_tensor(name)
        except Exception as error:
            found.append(f"{path.relative_to(home)}: {error}")
    return found


def until(holds: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, holds
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
