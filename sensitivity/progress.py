"""How long work reports itself, and how it keeps what it has measured.

`Progress` is called with a stage, how much of it is done and how much there is; it may raise to stop the work.
`Steps` runs the steps of a measurement; one that stores results lets an interrupted measurement go on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that says nothing."""


class Steps(Protocol):
    """Runs `compute` and returns its array, or returns the array that an earlier run stored under `name`."""

    def __call__(self, name: str, compute: Callable[[], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]: ...


def compute_always(name: str, compute: Callable[[], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Steps that remember nothing."""
    return compute()
