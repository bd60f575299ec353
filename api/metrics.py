"""Metrics: what a monitoring system reads at /metrics, in a registry of the application's own.

What happens in this process is counted as it happens; what the workers do is read from the store when asked, so that it
is complete whatever process did it and whenever that was restarted. Labels have few values; ids are never among them.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from ..allocator.errors import BitplanError
from .jobs.presence import Watch
from .jobs.queue import Jobs
from .schema import ACTIVE
from .store import Store
from .store.times import job_seconds

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    def __init__(self, store: Store, jobs: Jobs, watch: Watch) -> None:
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "http_server_request_duration_seconds",
            "Seconds from the request's head to the answer's end, by template of the route.",
            ("route", "method", "status"),
            buckets=REQUEST_BUCKETS,
            registry=self._registry,
        )
        self.solving = Histogram(
            "plan_solve_seconds", "Seconds to make one plan from stored tables.", buckets=REQUEST_BUCKETS, registry=self._registry
        )
        self.gaps = Histogram(
            "solver_gap_ratio",
            "Gap between a plan's loss and its certified lower bound, relative to the loss.",
            buckets=(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
            registry=self._registry,
        )
        self._registry.register(_Stored(store, jobs, watch))

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Stored(Collector):
    """What the store knows of jobs and workers."""

    def __init__(self, store: Store, jobs: Jobs, watch: Watch) -> None:
        self._store, self._jobs, self._watch = store, jobs, watch

    def describe(self) -> list[Metric]:
        return []  # asked at registration, when the store need not be reachable

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("store_up", "Whether the store answers.")
        try:
            families = [*self._of_jobs(), *self._of_workers()]
        except BitplanError:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from families

    def _of_jobs(self) -> Iterator[Metric]:
        ended = CounterMetricFamily("jobs", "Jobs that have ended.", labels=("kind", "status"))
        open_jobs = GaugeMetricFamily("jobs_open", "Jobs that have not ended.", labels=("kind", "status"))
        queued = GaugeMetricFamily("jobs_queued", "Jobs that wait for a worker.", labels=("kind",))
        for (kind, status), count in sorted(self._jobs.counts().items()):
            (open_jobs if status in ACTIVE else ended).add_metric((kind, status), count)
            if status == "queued":
                queued.add_metric((kind,), count)
        duration = SummaryMetricFamily("job_duration_seconds", "Seconds from a job's start to its end.", labels=("kind",))
        wait = SummaryMetricFamily("job_queue_wait_seconds", "Seconds until a worker took a job up.", labels=("kind",))
        for kind, times in sorted(job_seconds(self._store.database).items()):
            wait.add_metric((kind,), times.started, times.waited)
            duration.add_metric((kind,), times.finished, times.worked)
        yield from (ended, open_jobs, queued, duration, wait)

    def _of_workers(self) -> Iterator[Metric]:
        explained = "Seconds that the beats of the living workers have been still, the liveliest first."
        age = GaugeMetricFamily("worker_heartbeat_age_seconds", explained, labels=("place",))
        alive = GaugeMetricFamily("workers_alive", "Workers that beat, by version.", labels=("version",))
        workers = self._store.workers.list()
        dead = self._watch.dead(workers)
        silences = sorted(self._watch.silent_seconds(worker) for worker in workers if worker.id not in dead)
        for place, seconds in enumerate(silences):
            age.add_metric((str(place),), seconds)
        versions = [worker.version for worker in workers if worker.id not in dead]
        for version in sorted(set(versions)):
            alive.add_metric((version,), versions.count(version))
        yield from (age, alive)
