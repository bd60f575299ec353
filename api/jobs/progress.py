"""JobProgress: how far a job is, as its row says it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...allocator.errors import Interrupted
from ..schema import Progress
from ..store import Store

Tell = Callable[[str, int, int], None]
REPORT_SECONDS = 0.25


class JobProgress:
    """Writes a job's progress into its row, four times a second at most, and raises Interrupted when the job is called off.

    `pause` is called first, each time: it raises, or never returns, when the whole process is to stop. The time to the end
    of a stage is guessed from its own pace: elapsed * (1 - fraction) / fraction.
    """

    def __init__(self, store: Store, job_id: str, pause: Callable[[], None]) -> None:
        self._store, self._job_id, self._pause = store, job_id, pause
        self._stage = ""
        self._began = self._told = 0.0
        self._first = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._pause()
        moment = time.monotonic()
        fraction = min(done / total, 1.0) if total else 0.0
        if stage != self._stage:
            self._stage, self._began, self._first = stage, moment, fraction
        elif done < total and moment - self._told < REPORT_SECONDS:
            return
        self._told = moment
        gained = fraction - self._first  # work taken up again begins in the middle of a stage
        eta = (moment - self._began) * (1 - fraction) / gained if gained > 0 else None
        self.pass_on(Progress(stage=stage, done=done, total=total, fraction=fraction, eta_seconds=eta))

    def pass_on(self, progress: Progress) -> None:
        """Write down what is known already, as of another job that this one waits for."""
        if not self._store.jobs.report(self._job_id, progress):
            raise Interrupted("canceled on request; what was measured is kept")
