"""Things by a prefix of their id."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ...allocator.errors import NotFound, UsageError

HEXADECIMAL = re.compile("[0-9a-f]+")


def found_id(session: Session, column: InstrumentedAttribute[str], what: str, prefix: str) -> str:
    """The id that is, or alone begins with, `prefix`. Raises NotFound, or UsageError when several do."""
    query = select(column)
    if HEXADECIMAL.fullmatch(prefix):  # as hashes are: a range of an index, whatever the database's sorting of other text
        query = query.where(column >= prefix, column < prefix + "g").order_by(column).limit(3)
    else:
        query = query.where(column == prefix)
    found: list[Any] = list(session.scalars(query))
    if not found:
        raise NotFound(f"no {what} {prefix!r} is stored; `bitplan list` shows those that are")
    if len(found) > 1 and found[0] != prefix:
        some = ", ".join(each[:16] for each in found)
        raise UsageError(f"{prefix!r} begins the id of more than one {what} ({some}); give more of it")
    return str(found[0])
