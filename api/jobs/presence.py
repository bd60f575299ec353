"""Which workers are alive, found out without trusting any clock but one's own.

A worker writes a row and makes its counter grow. It is dead for another when its process is gone, where both run on one
machine, or when its counter has stood still for DEAD_SECONDS in which the other could read the store: neither clocks that
jump nor a database that is away kill a worker.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from ..schema import WorkerView
from ..store import Store
from .engine import workflows_version

BEAT_SECONDS = 2.0
DEAD_SECONDS = 30.0


class Presence:
    """This process's own row, from the first `beat` to `leave`."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        process = psutil.Process()
        self._view = WorkerView(
            id=f"worker_{secrets.token_hex(8)}",
            host=host_name(),
            pid=process.pid,
            process_started=process.create_time(),
            version=workflows_version(),
            beat=0,
        )

    @property
    def view(self) -> WorkerView:
        return self._view

    def beat(self) -> None:
        self._write(self._view.job_id)

    def working_on(self, workflow_id: str) -> None:
        """Say what runs networks here from now on: it is what a sudden death will be laid to."""
        if self._view.job_id != workflow_id:
            self._write(workflow_id)

    def leave(self) -> None:
        with self._lock:
            self._store.workers.remove(self._view.id)

    def _write(self, job_id: str | None) -> None:
        with self._lock:
            self._view = self._view.model_copy(update={"beat": self._view.beat + 1, "job_id": job_id})
            self._store.workers.beat(self._view)


class Watch:
    """What one worker thinks of the others."""

    def __init__(self, host: str, clock: Callable[[], float] = time.monotonic, longest_look: float = math.inf) -> None:
        """Two looks that are further apart than `longest_look` seconds count as so far: the one who looks every few seconds
        was itself kept from it."""
        self._host, self._clock, self._longest_look, self._lock = host, clock, longest_look, threading.Lock()
        self._looked: float | None = None
        self._still: dict[str, tuple[int, float]] = {}  # the counter as last seen, and for how long it has been so

    def dead(self, workers: Iterable[WorkerView]) -> set[str]:
        """The ids of those that are dead by now."""
        with self._lock:
            return self._look(workers)

    def _look(self, workers: Iterable[WorkerView]) -> set[str]:
        now = self._clock()
        passed = 0.0 if self._looked is None else min(max(now - self._looked, 0.0), self._longest_look)
        self._looked = now
        found, still = set(), dict[str, tuple[int, float]]()
        for worker in workers:
            beat, seconds = self._still.get(worker.id, (-1, 0.0))
            still[worker.id] = (worker.beat, seconds + passed if beat == worker.beat else 0.0)
            if still[worker.id][1] >= DEAD_SECONDS or (worker.host == self._host and not process_lives(worker)):
                found.add(worker.id)
        self._still = still
        return found

    def silent_seconds(self, worker: WorkerView) -> float:
        """For how long the counter had stood still at the last look."""
        return self._still.get(worker.id, (0, 0.0))[1]


def process_lives(worker: WorkerView) -> bool:
    """Whether a worker of this machine still runs; another process may have got its number since."""
    try:
        process = psutil.Process(worker.pid)
        alive: bool = process.status() != psutil.STATUS_ZOMBIE
        return alive and bool(abs(process.create_time() - worker.process_started) < 2.0)
    except psutil.Error:
        return False


def host_name() -> str:
    """The machine's name, and which of its worlds of process numbers this is where it has several (containers)."""
    world = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{os.stat(world).st_ino}" if world.exists() else socket.gethostname()
