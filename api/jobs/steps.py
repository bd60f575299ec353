"""One step of a workflow, as the engine remembers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dbos import DBOS

from ...allocator.errors import BitplanError, Interrupted
from ..logs import log
from ..problems import other_problem, problem_of
from .desk import Failed

Result = TypeVar("Result")


def step(name: str, do: Callable[[], Result]) -> Result:
    """What `do()` returns, a small JSON document, or what it returned when it was done before. Raises Failed."""

    def settled() -> dict[str, Any]:
        try:
            return {"value": do()}
        except Interrupted:
            raise
        except BitplanError as error:
            return {"problem": problem_of(error)}
        except Failed as error:
            return {"problem": error.problem}

    found: dict[str, Any] = DBOS.run_step({"name": name}, settled)
    if "problem" in found:
        raise Failed(found["problem"])
    value: Result = found["value"]
    return value


def unexpected(error: Exception) -> dict[str, Any]:
    """The problem of an error that should not happen, from where it is handled: the log gets its traceback."""
    log.exception("unexpected error")
    return other_problem("internal-error", f"{type(error).__name__}: {error}; the worker's log has the traceback")
