"""Pages of a list: keyset cursors, which name the last row shown by its own values.

A page begins right after that row in the order of the list, so what is put or deleted meanwhile moves no other row to
another page. A cursor is opaque to users but no secret: anything can come back as one, and what is none of ours raises
UsageError. It is good for the list and the sorting that it came from, whatever the filters.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from ...allocator.errors import UnknownName, UsageError

LONGEST_CURSOR = 400
LARGEST_INTEGER = 2**63 - 1
LARGEST_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Order:
    """An order of a list's rows: by a column (None: as they came), ties by number, all in one direction."""

    name: str
    column: InstrumentedAttribute[Any] | None
    number: InstrumentedAttribute[int]
    descending: bool

    @classmethod
    def newest(cls, number: InstrumentedAttribute[int]) -> Order:
        """The last that came first."""
        return cls("-created_at", None, number, descending=True)

    def keys(self) -> list[ColumnElement[Any]]:
        return [self.number.expression] if self.column is None else [self.column.expression, self.number.expression]

    def after(self, values: list[Any]) -> ColumnElement[bool]:
        """The rows that follow the one with these keys."""
        keys = self.keys()
        mine, theirs = tuple_(*keys), tuple_(*(literal(value, key.type) for value, key in zip(values, keys, strict=True)))
        return mine < theirs if self.descending else mine > theirs


def chosen_order(sort: str, columns: dict[str, InstrumentedAttribute[Any] | None], number: InstrumentedAttribute[int]) -> Order:
    """`sort` names one of the columns; a leading minus turns it round. Raises UnknownName."""
    name = sort.removeprefix("-")
    if name not in columns:
        raise UnknownName("sorting", sort, [sign + known for known in columns for sign in ("-", "")])
    return Order(sort, columns[name], number, sort.startswith("-"))


def page(
    session: Session, query: Select[*tuple[Any, ...]], order: Order, cursor: str | None, limit: int
) -> tuple[list[Row[*tuple[Any, ...]]], str | None]:
    """`limit` rows of `query` after the cursor, and the cursor of what follows them (None: nothing does)."""
    keys = order.keys()
    if cursor is not None:
        query = query.where(order.after(_read(cursor, order)))
    turned = [key.desc() if order.descending else key.asc() for key in keys]
    rows = session.execute(query.add_columns(*keys).order_by(*turned).limit(limit + 1)).all()
    if len(rows) <= limit:
        return list(rows), None
    return list(rows[:limit]), _write(order, list(rows[limit - 1][-len(keys) :]))


def _write(order: Order, values: list[Any]) -> str:
    text = json.dumps([order.number.class_.__tablename__, order.name, *values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(cursor: str, order: Order) -> list[Any]:
    refusal = UsageError(f"the cursor {cursor[:80]!r} is none of this list; take `next_cursor` of the page before")
    try:
        if len(cursor) > LONGEST_CURSOR:
            raise refusal
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        document = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise refusal from None
    keys = order.keys()
    if not isinstance(document, list) or document[:2] != [order.number.class_.__tablename__, order.name]:
        raise refusal
    values = document[2:]
    if len(values) != len(keys) or not all(_fits(value, key) for value, key in zip(values, keys, strict=True)):
        raise refusal
    if not 0 <= values[-1] <= LARGEST_NUMBER:
        raise refusal
    return values


def _fits(value: Any, key: ColumnElement[Any]) -> bool:
    kind = key.type.python_type
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST_INTEGER
    if kind is float:
        return type(value) is float and math.isfinite(value)
    return False
