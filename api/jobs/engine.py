"""The engine that work runs on, DBOS: where its tables lie, which queue a kind of job waits in, and how to talk to it.

The engine decides what runs where and when, remembers every finished step, and gives work of dead workers to others. Its
workflow of a job has the job's id. SQLite keeps its tables in a file beside the store, PostgreSQL in a schema of its own.

    jobs     inspect, profile, verify, execute: run networks, one at a time in a worker
    blocks   pieces of a profile that any worker may do, one at a time in a worker
    parents  plan, sweep: ask for other jobs, wait for them, and plan; they take next to nothing
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url
from sqlalchemy.exc import ProgrammingError

from ..logs import log
from ..schema import JobKind, Progress

if TYPE_CHECKING:
    from dbos import DBOSClient, WorkflowStatus

APPLICATION = "bitplan"
WORKFLOWS_VERSION = 1  # raised when the order of a workflow's steps changes: what was begun before is finished by its own kind
JOBS, BLOCKS, PARENTS = "jobs", "blocks", "parents"
QUEUE_OF: dict[JobKind, str] = {
    "inspect": JOBS,
    "profile": JOBS,
    "verify": JOBS,
    "execute": JOBS,
    "plan": PARENTS,
    "sweep": PARENTS,
}
BLOCK = "block"  # the workflow of one piece of a profile
ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
FORGOTTEN_AT_ONCE = 500
DIED = "died "  # + a worker's id: attribute of a workflow that was running in that worker when it died


def workflows_version() -> str:
    """Workers take up only what was asked for in this version."""
    return f"{importlib.metadata.version('bitplan')}+{WORKFLOWS_VERSION}"


def engine_url(database_url: str) -> str:
    """Where the engine's tables are for a store."""
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        path = Path(url.database)
        return f"sqlite:///{path.with_name(f'{path.stem}-jobs.db')}"
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@dataclass(frozen=True)
class Piece:
    """A piece of a profile that was asked for: how the engine sees it, and the problem it ended with."""

    ended: bool
    problem: dict[str, Any] | None


class Engine:
    """A connection to the engine of one store, made when it is first needed: only workers make its tables."""

    def __init__(self, database_url: str, *, patient: bool = False) -> None:
        """`patient`: wait while the database is away, instead of raising."""
        self.url, self._patient = engine_url(database_url), patient
        self._lock = threading.Lock()
        self._client: DBOSClient | None = None

    @property
    def client(self) -> DBOSClient:
        """Raises an error of the database when it is away or no worker has made the tables yet."""
        from dbos import DBOSClient, DBOSPortableJSONSerializer

        with self._lock:
            if self._client is None:
                self._client = DBOSClient(
                    system_database_url=self.url,
                    application_name=APPLICATION,
                    serializer=DBOSPortableJSONSerializer(),
                    retry_connection_errors=self._patient,
                    lazy=True,
                )
            return self._client

    def ask(self, job_id: str, kind: JobKind) -> None:
        """Have a job done; asking again changes nothing."""
        self._enqueue(kind, QUEUE_OF[kind], job_id, job_id)

    def try_ask(self, job_id: str, kind: JobKind) -> bool:
        """The same, but false where that is not possible now; workers find what was not asked for."""
        if self._no_file_yet():
            return False
        try:
            self.ask(job_id, kind)
        except Exception as error:
            log.info("not enqueued yet", job_id=job_id, reason=type(error).__name__)
            return False
        return True

    def ask_pieces(self, job_id: str, names: Iterable[str]) -> None:
        """Have pieces of a profile job done by whichever worker is free."""
        for name in names:
            self._enqueue(BLOCK, BLOCKS, piece_id(job_id, name), job_id, name)

    def pieces(self, job_id: str, names: Iterable[str]) -> dict[str, Piece]:
        """How far the pieces of a profile job are, by name."""
        ids = {piece_id(job_id, name): name for name in names}
        return {
            ids[status.workflow_id]: Piece(status.status in ENDED, _problem(status))
            for status in (self.client.list_workflows(workflow_ids=list(ids), load_input=False) if ids else ())
        }

    def states(self, job_ids: Iterable[str]) -> dict[str, WorkflowStatus]:
        """What the engine knows of jobs, by id; it may not know all of them."""
        wanted = list(job_ids)
        found = self.client.list_workflows(workflow_ids=wanted, load_input=False) if wanted else []
        return {status.workflow_id: status for status in found}

    def running(self) -> list[WorkflowStatus]:
        """All that runs in a worker, or did when the worker died."""
        return self.client.list_workflows(status="PENDING", load_input=False, load_output=False)

    def cancel(self, workflow_ids: Iterable[str]) -> None:
        """Have the engine forget about workflows, whether they wait or run; nobody is interrupted by this."""
        wanted = list(workflow_ids)
        if wanted:
            self.client.cancel_workflows(wanted)

    def forget(self, before: datetime, *, dry_run: bool = False) -> int:
        """Let go of all that had ended by then; how many workflows that is. None where no worker has made the tables yet.
        Raises an error of the database when that is away."""
        if self._no_file_yet():
            return 0
        try:
            found = self.client.list_workflows(
                status=list(ENDED), completed_before=before.isoformat(), load_input=False, load_output=False
            )
        except ProgrammingError:  # PostgreSQL without the tables
            return 0
        ids = [status.workflow_id for status in found]
        for begin in range(0, 0 if dry_run else len(ids), FORGOTTEN_AT_ONCE):
            self.client.delete_workflows(ids[begin : begin + FORGOTTEN_AT_ONCE])
        return len(ids)

    def deaths(self, workflow_id: str) -> list[str]:
        """For each worker that died while it ran this workflow: where that was."""
        attributes = (self.states([workflow_id])[workflow_id].attributes or {}).items()
        return [str(place) for name, place in attributes if name.startswith(DIED)]

    def note_death(self, workflow_id: str, worker_id: str, progress: Progress | None) -> None:
        """A worker died while it ran this workflow, which had come so far; noting it twice is noting it once."""
        steps = len(self.client.list_workflow_steps(workflow_id, load_output=False))
        place = f"{steps} steps" + ("" if progress is None else f", {progress.stage} {progress.done}")
        self.client.update_workflow_attributes(workflow_id, {f"{DIED}{worker_id}": place}, merge=True)

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.destroy()
                self._client = None

    def _no_file_yet(self) -> bool:
        return self.url.startswith("sqlite") and not Path(self.url.removeprefix("sqlite:///")).exists()

    def _enqueue(self, workflow: str, queue: str, workflow_id: str, *arguments: str) -> None:
        self.client.enqueue(
            {
                "workflow_name": workflow,
                "queue_name": queue,
                "workflow_id": workflow_id,
                "app_version": workflows_version(),
            },
            *arguments,
        )


def piece_id(job_id: str, name: str) -> str:
    """The engine's id of a piece of a profile job."""
    return f"{job_id} {name}"


def _problem(status: WorkflowStatus) -> dict[str, Any] | None:
    from ..problems import other_problem

    if status.status in ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"):
        return other_problem("internal-error", f"{status.workflow_id} ended in the engine: {status.error or status.status}")
    problem: dict[str, Any] | None = status.output if status.status == "SUCCESS" else None
    return problem
