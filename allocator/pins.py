"""Pins: regular expressions over the names of units.

A pattern may come from a stranger, and some patterns take for ever to match: each repeat inside a repeat doubles the ways
to share out a name with every character of it. So matching goes by a matcher that can be told to stop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import regex

from .errors import UsageError

MATCH_SECONDS = 1.0


def check_pin(pattern: str) -> None:
    """Raise UsageError for what is no regular expression."""
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise UsageError(f"pin {pattern!r} is not a regular expression ({error}); mend it or escape it") from error


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that the pattern matches from end to end. Raises UsageError when that takes too long to find out."""
    compiled = regex.compile(pattern)
    deadline = time.monotonic() + MATCH_SECONDS
    try:
        return [
            name
            for name in names
            if compiled.fullmatch(name, timeout=max(deadline - time.monotonic(), 0.001), concurrent=True) is not None
        ]
    except TimeoutError:
        raise UsageError(
            f"pin {pattern!r} takes more than {MATCH_SECONDS:g} s to match; write it without repeats inside repeats"
        ) from None
