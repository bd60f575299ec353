"""Lanes: work of very different length in two queues, so that what is short does not wait for what is long.

Work of a kind that took little time when it was last done is done by one thread: a second one would only take the
interpreter from it, and from the loop that answers everybody else. All other work, and what nobody knows yet, is done by
a few threads beside it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from .kept import Kept

Result = TypeVar("Result")
SHORT_SECONDS = 0.1
LONG_THREADS = 2
KINDS = 10_000


class Lanes:
    """Both queues. To be used from the event loop."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, "bitplan-short")
        self._long = ThreadPoolExecutor(LONG_THREADS, "bitplan-long")
        self._seconds: Kept[Hashable, float] = Kept(KINDS, KINDS, lambda _: 1)

    def close(self) -> None:
        self._short.shutdown()
        self._long.shutdown()

    def forget(self, kind: Hashable) -> None:
        """Take the next work of that kind for long: what was done last says nothing of it."""
        self._seconds.put(kind, math.inf)

    async def run(self, kind: Hashable, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises, done in the queue where its `kind` belongs by now."""

        def timed() -> Result:
            began = time.perf_counter()
            try:
                return work()
            finally:
                self._seconds.put(kind, time.perf_counter() - began)

        lane = self._short if (self._seconds.find(kind) or math.inf) <= SHORT_SECONDS else self._long
        return await asyncio.get_running_loop().run_in_executor(lane, copy_context().run, timed)
