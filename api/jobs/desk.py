"""Desk: what the workflows of one worker process share. One of them at a time runs networks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..problems import other_problem
from ..store import Store
from ..store.artifacts import Artifacts
from .bench import Bench
from .engine import Engine
from .presence import Presence
from .progress import JobProgress
from .queue import Jobs

DEATHS = 3


class Failed(Exception):
    """A job cannot go on, and this document says why."""

    def __init__(self, problem: dict[str, Any]) -> None:
        self.problem = problem
        super().__init__(problem.get("detail"))


class Desk:
    def __init__(self, store: Store, home: Path, artifacts: Artifacts, engine: Engine, presence: Presence) -> None:
        self.store, self.home, self.artifacts, self.engine, self.presence = store, home, artifacts, engine, presence
        self.jobs = Jobs(store, engine)
        self.bench = Bench(home)
        self.dead: frozenset[str] = frozenset()  # workers, as far as this one knows
        self.stop, self.stopped = threading.Event(), threading.Event()
        self._networks = threading.Lock()

    def teller(self, job_id: str) -> JobProgress:
        return JobProgress(self.store, job_id, self.pause)

    def pause(self) -> None:
        """Where work may stop: once the process is to stop, this does not return. Nothing is written down then, so that the
        next worker goes on here."""
        if self.stop.is_set():
            self.stopped.set()
            threading.Event().wait()

    @contextmanager
    def networks(self, workflow_id: str) -> Iterator[None]:
        """While open, nothing else runs networks in this process. Raises Failed for a workflow that killed too many workers."""
        self._refuse_killers(workflow_id)
        with self._networks:
            self.pause()
            self.presence.working_on(workflow_id)
            yield

    def wait_for_rest(self, seconds: float) -> None:
        """Wait until no network runs, at most so long."""
        step = 0.05
        while seconds > 0 and not self.stopped.is_set() and not self._networks.acquire(timeout=step):
            seconds -= step

    def call_off(self, job_id: str) -> None:
        """A job that was asked to stop has; so do those that it asked for."""
        children = self.store.jobs.list(parent=job_id, limit=200)
        while True:
            for child in children.items:
                if not child.finished:
                    self.jobs.cancel(child.id)
            if children.next_cursor is None:
                break
            children = self.store.jobs.list(parent=job_id, cursor=children.next_cursor, limit=200)
        self.store.jobs.finish(job_id)

    def others_alive(self) -> bool:
        """Whether another worker of this version could take a part of the work."""
        own = self.presence.view
        alive = [worker for worker in self.store.workers.list() if worker.id not in self.dead and worker.version == own.version]
        return any(worker.id != own.id for worker in alive)

    def fetch(self, names: Iterable[str]) -> None:
        """Bring files here that other machines made, where there are such."""
        for name in names:
            self.artifacts.fetch(name, self.home)

    def publish(self, names: Iterable[str]) -> None:
        """Let other machines have files made here."""
        for name in names:
            if (self.home / name).exists():
                self.artifacts.publish(name, self.home)

    def _refuse_killers(self, workflow_id: str) -> None:
        """A worker that dies may have been killed by anything; one that dies again and again at the very same place was not."""
        places = Counter(self.engine.deaths(workflow_id))
        if places and max(places.values()) >= DEATHS:
            detail = f"the worker died {DEATHS} times at the same place of this job; try a smaller one, or more memory"
            raise Failed(other_problem("worker-lost", detail))
