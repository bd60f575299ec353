"""Talks of the client performed without a network and without waiting: answers come from a script, time from a counter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bitplan.api.client.persistence import Persistence, persistent
from bitplan.api.client.talk import Ask, Chunk, Course, Give, Now, Open, Opened, Pause

Answer = httpx2.Response | Exception
URL = "http://service"


@dataclass
class Performer:
    """Answers each request by `service`; `pauses` and `asked` tell what happened, `given` what a flow gave."""

    service: Callable[[Ask], Answer]
    retries: int = 4
    seconds: float = 300.0
    clock: float = 0.0
    asked: list[Ask] = field(default_factory=list)
    pauses: list[tuple[float, float]] = field(default_factory=list)
    given: list[Any] = field(default_factory=list)

    def run(self, talk: Any) -> Any:
        with Course(persistent(talk, Persistence(URL, self.retries, self.seconds))) as course:
            while (effect := course.effect) is not None:
                try:
                    answer = self._outcome(effect)
                except Exception as error:
                    course.fail(error)
                else:
                    course.answer(answer)
            return course.result

    def _outcome(self, effect: Any) -> Any:
        match effect:
            case Ask():
                self.asked.append(effect)
                answer = self.service(effect)
                if isinstance(answer, Exception):
                    raise answer
                answer.request = httpx2.Request(effect.method, URL + effect.path)
                return Opened(answer, answer.extensions.get("pieces")) if isinstance(effect, Open) else answer
            case Chunk(opened):
                return next(opened.chunks, b"")
            case Pause(shortest, longest):
                self.pauses.append((shortest, longest))
                self.clock += longest
            case Give(value):
                self.given.append(value)
            case Now():
                return self.clock
        return None


def script(*answers: Answer) -> Callable[[Ask], Answer]:
    """Each answer once, in this order."""
    rest = iter(answers)
    return lambda ask: next(rest)


def streamed(pieces: Iterable[bytes | Exception], status: int = 200, **headers: str) -> httpx2.Response:
    """A reply that arrives in pieces; an exception among them breaks the connection there."""

    def arrive() -> Iterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=named, extensions={"pieces": arrive()})


def job_state(version: int, status: str = "running") -> dict[str, Any]:
    """A job as a service sends it."""
    return {
        "id": "job_1",
        "kind": "plan",
        "status": status,
        "created_at": "",
        "started_at": None,
        "finished_at": None,
        "attempt": 1,
        "version": version,
        "progress": None,
        "input": {"model": "ä\n€"},
        "result": None,
        "error": None,
        "links": {},
    }
