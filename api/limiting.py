"""Rate limits: how many requests one key may send, in a window that moves with the clock.

Counts live in this process: they begin anew with it, and each of several API processes counts for itself.
"""

from __future__ import annotations

import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ..allocator.errors import UsageError
from .settings import Settings

KEY_RATE = "300/second"  # a fence against runaway loops; planning is slower than this


class Limiter:
    """Who has sent how much lately. `settings.rate` holds for everybody; unset, keys have KEY_RATE and nobody else a limit."""

    def __init__(self, settings: Settings) -> None:
        self._for_keys = _rate(settings.rate or KEY_RATE)
        self._for_local = None if settings.rate is None else _rate(settings.rate)
        self._window = MovingWindowRateLimiter(MemoryStorage())

    def seconds_to_wait(self, key_id: str | None) -> int:
        """Count one request by the owner of a key, or by the machine's owner (None); 0 when it is within the limit."""
        rate = self._for_local if key_id is None else self._for_keys
        who = key_id or "local"
        if rate is None or self._window.hit(rate, who):
            return 0
        return max(1, round(self._window.get_window_stats(rate, who).reset_time - time.time()))


def _rate(text: str) -> RateLimitItem:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"BITPLAN_RATE={text!r} is no rate; write a number per unit of time, such as 300/minute") from error
