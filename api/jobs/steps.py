"""One step of a workflow, as the engine remembers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dbos import DBOS

from ...allocator.errors import BitplanError, Interrupted
from ..problems import problem_of
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
