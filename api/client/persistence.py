"""Persistence: which requests are sent again, when, and when to give up.

Sent again is what may succeed the next time: a request whose connection broke or timed out, and one that was answered
429, 502, 503 or 504. Every POST carries an Idempotency-Key, the same one on each attempt, so that work which was begun
by an attempt with a lost answer is not begun twice. Pauses double from FIRST_PAUSE to LONGEST_PAUSE seconds, half of each
drawn at random so that many clients do not come back at once; a Retry-After of the service is waited for.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from ...allocator.errors import BitplanError
from .talk import Ask, Course, Now, Opened, Pause, Talk

Result = TypeVar("Result")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
PASSING = (429, 502, 503, 504)
BROKEN = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError)


@dataclass(frozen=True)
class Persistence:
    """`retries` is how often a request is sent again, `seconds` how long all its attempts may take together. A patient
    request (see Ask) is sent again as often as the seconds allow."""

    url: str
    retries: int
    seconds: float


def persistent(talk: Generator[Any, Any, Result], persistence: Persistence) -> Generator[Any, Any, Result]:
    """The same talk, its requests sent again where that may help. Raises BitplanError for a service that cannot be
    reached; the last reply is handed on as it is."""
    with Course(talk) as course:
        while (effect := course.effect) is not None:
            try:
                answer = (yield from _asked(effect, persistence)) if isinstance(effect, Ask) else (yield effect)
            except Exception as error:
                course.fail(error)
            else:
                course.answer(answer)
        return course.result


def _asked(ask: Ask, persistence: Persistence) -> Talk[Any]:
    began: float = yield Now()
    attempt, lost, pause = 0, False, FIRST_PAUSE
    while True:
        wish = None
        try:
            answer = yield ask
        except BROKEN as error:
            answer, lost, reason = None, True, error
        else:
            response = answer.response if isinstance(answer, Opened) else answer
            if not _passing(response, lost):
                return answer
            wish = _retry_after(response)
        now: float = yield Now()
        left = began + persistence.seconds - now
        if (attempt >= persistence.retries and not ask.patient) or left < (pause if wish is None else wish):
            if answer is None:
                raise BitplanError(
                    f"no answer from {persistence.url} ({reason}); start the service with `bitplan serve`"
                ) from reason
            return answer
        yield Pause(pause / 2, pause) if wish is None else Pause(wish, wish + pause / 2)
        attempt, pause = attempt + 1, min(2 * pause, LONGEST_PAUSE)


def _passing(response: httpx2.Response, lost: bool) -> bool:
    """Whether the same request may be answered better later. 409 is, when an attempt of our own whose answer was lost is
    what the service is still busy with."""
    if response.status_code == 409 and lost:
        return "idempotency-in-flight" in response.text
    return response.status_code in PASSING


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds to wait, from a number of them or from a date by the service's own clock."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - parsedate_to_datetime(response.headers["date"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None
