"""Talks: what is said between a client and a service, without saying how it is sent.

A talk is a generator. It yields an effect, gets what came of it, and so on until it returns its result:

    Ask      one request; the reply, read in full
    Open     one request whose reply is read piece by piece
    Chunk    the next piece of an opened reply; b"" at its end
    Pause    time, drawn between two bounds
    Now      seconds on a clock that never runs backwards
    Give     hands a value to whoever iterates over the talk, which is then a flow

The two clients perform the effects, one by waiting and one by awaiting, and tests perform them with no clock and no
network at all. What went wrong with an effect is raised inside the talk, at the effect.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

import httpx2

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ask:
    """`patient`: the service has taken work on for us, so that it is worth waiting until it is back when it goes away."""

    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    patient: bool = False


@dataclass(frozen=True)
class Open(Ask):
    """As Ask; what comes of it is an Opened. The body of an error is read."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A reply whose body is still to be read, by `Chunk`. `chunks` is the iterator that the client reads from."""

    response: httpx2.Response
    chunks: Any


@dataclass(frozen=True)
class Chunk:
    opened: Opened


@dataclass(frozen=True)
class Pause:
    shortest: float
    longest: float


@dataclass(frozen=True)
class Now:
    pass


@dataclass(frozen=True)
class Give(Generic[Item]):
    value: Item


Effect: TypeAlias = Ask | Open | Chunk | Pause | Now
Talk: TypeAlias = Generator[Effect, Any, Result]
Flow: TypeAlias = Generator[Effect | Give[Item], Any, None]


class Course(Generic[Result]):
    """A talk under way: `effect` is what it wants next, None once it has ended with `result`. A context: leaving it ends
    the talk, wherever it is."""

    effect: Effect | Give[Any] | None
    result: Result

    def __init__(self, talk: Generator[Effect | Give[Any], Any, Result] | Generator[Effect, Any, Result]) -> None:
        self._talk = talk
        self.answer(None)

    def answer(self, value: Any) -> None:
        """Tell the talk what came of its effect."""
        try:
            self.effect = self._talk.send(value)
        except StopIteration as end:
            self.effect, self.result = None, end.value

    def fail(self, error: Exception) -> None:
        """Tell the talk what went wrong with its effect."""
        try:
            self.effect = self._talk.throw(error)
        except StopIteration as end:
            self.effect, self.result = None, end.value

    def __enter__(self) -> Course[Result]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._talk.close()
