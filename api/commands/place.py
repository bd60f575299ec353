"""Place: where a command's work is done, on this machine or by a service.

Commands ask a place and print what it hands back, so that they say the same wherever the work was done. `Here` does it
in this process, with the store under BITPLAN_HOME; `There` is a client of the service that `--server` names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...allocator.errors import UsageError
from ..arguments import find_plan
from ..client.jobs import Watch
from ..jobs.progress import Tell
from ..schema import InspectBody, JobView, KeyView, ListView, PlanBody, PlanSummary, Scope, SweepBody

if TYPE_CHECKING:
    from ...allocator import Inventory, Plan, SensitivityReport
    from ..client import Client, Sweep
    from ..jobs.queue import Jobs
    from ..settings import Settings
    from ..store import Store

POLL_SECONDS = 0.25


class Place(Protocol):
    """`tell` hears of the progress: stage, done, total."""

    def inspect(self, body: InspectBody, tell: Tell) -> Inventory: ...
    def profile(self, body: PlanBody, tell: Tell) -> SensitivityReport: ...
    def plan(self, body: PlanBody, tell: Tell) -> Plan: ...
    def whole_frontier(self, body: PlanBody, tell: Tell) -> tuple[SensitivityReport, Plan]:
        """The profile, and the plan of a budget without limit: its frontier is that of every budget."""
        ...

    def find(self, text: str) -> Plan:
        """The plan that PLAN means: a file, an id, or a prefix of one."""
        ...

    def export(self, plan: Plan, out: Path, to: str, device: str, tell: Tell) -> None: ...
    def verify(self, plan: Plan, data: Path | None, device: str, tell: Tell) -> dict[str, Any]: ...
    def plans(self, **filters: Any) -> ListView[PlanSummary]: ...
    def sweep(self, body: SweepBody, fresh: bool, tell: Tell) -> Sweep: ...
    def jobs(self, **filters: Any) -> ListView[JobView]: ...
    def job(self, job_id: str) -> JobView: ...
    def cancel(self, job_id: str) -> JobView: ...
    def follow(self, job_id: str) -> Iterator[JobView]:
        """The job each time it has changed, the last time when it has ended."""
        ...

    def keys(self) -> list[KeyView]: ...
    def create_key(self, name: str, scope: Scope, days: float | None) -> tuple[KeyView, str]: ...
    def revoke_key(self, key_id: str) -> None: ...


@contextmanager
def place(server: str | None) -> Iterator[Place]:
    """The service at `server`, or this machine."""
    if server:
        from ..client import Client

        with Client(server) as client:
            yield There(client)
    else:
        from ..jobs.engine import Engine
        from ..jobs.queue import Jobs

        with local_state() as (settings, store), closing(Engine(settings.database_url)) as engine:
            yield Here(settings, store, Jobs(store, engine))


@contextmanager
def local_state(database_url: str | None = None) -> Iterator[tuple[Settings, Store]]:
    """The settings and the open store of this machine."""
    from ..settings import Settings
    from ..store import Store

    settings = Settings.from_environment(database_url=database_url)
    with closing(Store.open(settings.database_url)) as store:
        yield settings, store


@dataclass(frozen=True)
class Here:
    settings: Settings
    store: Store
    queue: Jobs

    def inspect(self, body: InspectBody, tell: Tell) -> Inventory:
        from ..jobs import work

        return work.inspect_model(self.store, self.settings.home, body, tell)

    def profile(self, body: PlanBody, tell: Tell) -> SensitivityReport:
        from ..jobs import work

        return work.profile_model(self.store, self.settings.home, body.profile(), tell)

    def plan(self, body: PlanBody, tell: Tell) -> Plan:
        from ..jobs import work

        return work.make_plan(self.store, self.settings.home, body, tell)

    def whole_frontier(self, body: PlanBody, tell: Tell) -> tuple[SensitivityReport, Plan]:
        from .. import planning

        planning.check_body(body, self.settings)
        report = self.profile(body, tell)
        return report, planning.unlimited_plan(report.id, body.target, self.store)

    def find(self, text: str) -> Plan:
        return find_plan(text, self.store.plan)

    def export(self, plan: Plan, out: Path, to: str, device: str, tell: Tell) -> None:
        from ... import allocator

        allocator.execute(plan, out, device=device, home=self.settings.home, progress=tell)

    def verify(self, plan: Plan, data: Path | None, device: str, tell: Tell) -> dict[str, Any]:
        from ..jobs import work

        named = None if data is None else str(data)
        return work.verify_plan(self.store, self.settings.home, plan, tell, named, device).to_json()

    def plans(self, **filters: Any) -> ListView[PlanSummary]:
        return self.store.plans(**filters)

    def sweep(self, body: SweepBody, fresh: bool, tell: Tell) -> Sweep:
        from .local_sweep import local_sweep

        return local_sweep(self.store, self.settings, body, tell)

    def jobs(self, **filters: Any) -> ListView[JobView]:
        return self.queue.list(**filters)

    def job(self, job_id: str) -> JobView:
        return self.queue.get(job_id)

    def cancel(self, job_id: str) -> JobView:
        return self.queue.cancel(job_id)

    def follow(self, job_id: str) -> Iterator[JobView]:
        version = 0
        while True:
            now = self.job(job_id)
            if now.version > version:
                yield now
            if now.finished:
                return
            version = now.version
            time.sleep(POLL_SECONDS)

    def keys(self) -> list[KeyView]:
        return self.store.keys.list()

    def create_key(self, name: str, scope: Scope, days: float | None) -> tuple[KeyView, str]:
        return self.store.keys.create(name, scope, days)

    def revoke_key(self, key_id: str) -> None:
        self.store.keys.revoke(key_id)


@dataclass(frozen=True)
class There:
    client: Client

    def inspect(self, body: InspectBody, tell: Tell) -> Inventory:
        from ...allocator import Inventory

        return Inventory.from_json(self.client.inspect(body.model, stream=body.stream, watch=_watch(tell)))

    def profile(self, body: PlanBody, tell: Tell) -> SensitivityReport:
        from ...allocator import SensitivityReport

        found = self.client.profile(**body.profile().model_dump(), watch=_watch(tell))
        return SensitivityReport.from_json({name: value for name, value in found.items() if name != "model"})

    def plan(self, body: PlanBody, tell: Tell) -> Plan:
        return self.client.allocate(**body.model_dump(), watch=_watch(tell))

    def whole_frontier(self, body: PlanBody, tell: Tell) -> tuple[SensitivityReport, Plan]:
        """Planned here, from what the service has measured."""
        from ...allocator import PlanRequest, plan_from_profile

        report = self.profile(body, tell)
        inventory = self.inspect(InspectBody(model=body.model), tell)
        return report, plan_from_profile(inventory, report, PlanRequest(body.profile_request(), "100%", body.target))

    def find(self, text: str) -> Plan:
        return find_plan(text, self.client.plan)

    def export(self, plan: Plan, out: Path, to: str, device: str, tell: Tell) -> None:
        if device != "auto":
            raise UsageError("--torch-device is of this machine; leave it away with --server, which has its own")
        self.client.export(plan, out, to=to, watch=_watch(tell), received=lambda done, total: tell("download", done, total))

    def verify(self, plan: Plan, data: Path | None, device: str, tell: Tell) -> dict[str, Any]:
        if data is not None or device != "auto":
            raise UsageError("--data and --torch-device are of this machine; leave them away with --server")
        return self.client.verify(plan, watch=_watch(tell))

    def plans(self, **filters: Any) -> ListView[PlanSummary]:
        return self.client.plans(**filters)

    def sweep(self, body: SweepBody, fresh: bool, tell: Tell) -> Sweep:
        return self.client.sweep(**body.model_dump(), fresh=fresh, progress=False, watch=_watch(tell))

    def jobs(self, **filters: Any) -> ListView[JobView]:
        return self.client.jobs(**filters)

    def job(self, job_id: str) -> JobView:
        return self.client.job(job_id)

    def cancel(self, job_id: str) -> JobView:
        return self.client.cancel(job_id)

    def follow(self, job_id: str) -> Iterator[JobView]:
        return self.client.events(job_id)

    def keys(self) -> list[KeyView]:
        return self.client.keys()

    def create_key(self, name: str, scope: Scope, days: float | None) -> tuple[KeyView, str]:
        return self.client.create_key(name, scope, days=days)

    def revoke_key(self, key_id: str) -> None:
        self.client.revoke_key(key_id)


def _watch(tell: Tell) -> Watch:
    """Progress of a job, as progress of the command."""

    def watch(job: JobView) -> None:
        if job.progress is not None:
            tell(job.progress.stage, job.progress.done, job.progress.total)

    return watch
