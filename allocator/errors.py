"""What can go wrong, drawn first.

    BitplanError
    ├── UsageError            a request that cannot be meant: nonsense budget, bad option, empty calibration file
    │   └── UnknownName       a metric, solver, format, target or unit that does not exist; the known ones are listed
    ├── ModelError            the model cannot be read: missing, truncated, pickled, needs its own code, NaN weights
    ├── Infeasible            no plan fits the limits; says the smallest and largest bytes, or the least time, that would do
    ├── PlanMismatch          the plan was made for another model or another revision of it
    ├── VerificationFailed    bytes or kernels differ from the promise; the report is attached
    ├── NotFound              no such plan, profile or job
    ├── Forbidden             whoever asks may not do that; another key may
    ├── StoreUnavailable      the store's database is away for the moment; asking again later helps
    ├── DiskFull              there is no room left to write
    └── Interrupted           stopped on request; what was measured is kept

Every message is one sentence that names the culprit and the remedy. Folders below raise ValueError and KeyError.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class BitplanError(Exception):
    """The root of the tree."""


class UsageError(BitplanError):
    """A request that cannot be meant as written."""


class UnknownName(UsageError):
    """`name` is not a known `kind`; `known` lists those that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        close = get_close_matches(name, self.known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        listed = ", ".join(self.known[:20]) + (", ..." if len(self.known) > 20 else "")
        super().__init__(f"unknown {kind} {name!r}{hint}; choose one of: {listed}")


class ModelError(BitplanError):
    """The model cannot be read or is not fit to be planned."""


class Infeasible(BitplanError):
    """No plan fits; `minimum_bytes` to `maximum_bytes` is the range of budgets (whole model) that can be met. Where a limit
    on the latency stands in the way, `minimum_latency_ms` is the smallest that can be met within the budget asked for."""

    def __init__(self, message: str, minimum_bytes: int, maximum_bytes: int, *, minimum_latency_ms: float | None = None) -> None:
        self.minimum_bytes, self.maximum_bytes = minimum_bytes, maximum_bytes
        self.minimum_latency_ms = minimum_latency_ms
        super().__init__(message)


class PlanMismatch(BitplanError):
    """The plan and the model disagree."""


class VerificationFailed(BitplanError):
    """The executed model breaks the plan's promise; `report` says where."""

    def __init__(self, message: str, report: Any = None) -> None:
        self.report = report
        super().__init__(message)


class NotFound(BitplanError):
    """No stored thing has that id."""


class Forbidden(BitplanError):
    """Whoever asks may not do that."""


class StoreUnavailable(BitplanError):
    """The store cannot be used for the moment."""


class DiskFull(BitplanError):
    """There is no room left to write."""


class Interrupted(BitplanError):
    """Stopped on request; what was measured so far is kept and the same call goes on from there."""
