"""Looking at a job as it changes: however many listeners one job has, the store is asked four times a second for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from fastapi.concurrency import run_in_threadpool

from ..schema import JobView

POLL_SECONDS = 0.25


class Glances:
    """The newest state of jobs. For one event loop."""

    def __init__(self, look: Callable[[str], JobView]) -> None:
        self._look = look
        self._latest: dict[str, tuple[float, asyncio.Task[JobView]]] = {}

    async def changes(self, job: JobView, after: int) -> AsyncIterator[JobView]:
        """The job in each state that is newer than version `after`, the last one when it has ended. Only the newest state is
        kept: what changed twice between two looks comes once. Raises NotFound when the job is deleted meanwhile."""
        while True:
            if job.version > after:
                yield job
                after = job.version
            if job.finished:
                return
            await asyncio.sleep(POLL_SECONDS)
            job = await self._glance(job.id)

    async def _glance(self, job_id: str) -> JobView:
        """The job as it was at most POLL_SECONDS ago."""
        now = time.monotonic()
        for other, (moment, task) in list(self._latest.items()):
            if task.done() and now - moment > POLL_SECONDS:
                del self._latest[other]
        if job_id not in self._latest:
            self._latest[job_id] = now, asyncio.create_task(run_in_threadpool(self._look, job_id))
        return await asyncio.shield(self._latest[job_id][1])
