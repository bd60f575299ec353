"""Idempotency-Key: the first reply to a request is kept, and repeating the request gets that reply again.

A client that lost the answer to a POST may send it again with the same key without doing the work twice. The key is
taken before the work begins (a unique row, so that two senders cannot both take it) and given back when the work fails:
only successes are replayed. Keys are kept for a day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy import delete

from ..problems import other_problem
from .tables import Database, ReplyRow, timestamp

KEPT_SECONDS = 24 * 3600.0
ANSWER_SECONDS = 60.0  # a first request without a reply for so long has died, and the key may be taken again


@dataclass(frozen=True)
class Reply:
    """A response as values: what the routes of POST return."""

    status: int
    body: str
    headers: dict[str, str]

    @classmethod
    def problem(cls, document: dict[str, object]) -> Reply:
        return cls(int(str(document["status"])), json.dumps(document), {"content-type": "application/problem+json"})


def answer_once(database: Database, key: str | None, route: str, body: BaseModel, answer: Callable[[], Reply]) -> Reply:
    """`answer()`, or the reply that the same key, route and body got before. Another body is refused with 422, a first
    request that is still being answered with 409."""
    if key is None:
        return answer()
    content = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    before = _take(database, key, route, content)
    if before is not None:
        return before
    try:
        reply = answer()
    except BaseException:
        _give_back(database, key, route)
        raise
    with database.write() as session:
        row = session.get(ReplyRow, (key, route))
        if row is not None:
            row.status, row.headers, row.body = reply.status, json.dumps(reply.headers), reply.body
    return reply


def _take(database: Database, key: str, route: str, content: str) -> Reply | None:
    with database.write() as session:
        session.execute(delete(ReplyRow).where(ReplyRow.created_at < timestamp(KEPT_SECONDS)))
        session.execute(delete(ReplyRow).where(ReplyRow.status.is_(None), ReplyRow.created_at < timestamp(ANSWER_SECONDS)))
        row = session.get(ReplyRow, (key, route))
        if row is None:
            session.add(ReplyRow(key=key, route=route, content=content, created_at=timestamp()))
            return None
        if row.content != content:
            detail = f"the Idempotency-Key {key!r} came with another body before; send a new key with a new request"
            return Reply.problem(other_problem("idempotency-conflict", detail))
        if row.status is None or row.body is None:
            detail = f"the first request with the Idempotency-Key {key!r} is still being answered; try again in a second"
            return Reply.problem(other_problem("idempotency-in-flight", detail))
        return Reply(row.status, row.body, json.loads(row.headers or "{}"))


def _give_back(database: Database, key: str, route: str) -> None:
    with database.write() as session:
        session.execute(delete(ReplyRow).where(ReplyRow.key == key, ReplyRow.route == route))
