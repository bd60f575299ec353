"""Idempotency-Key: the first reply to a request is kept, and repeating the request gets that reply again.

A client that lost the answer to a POST may send it again with the same key without doing the work twice. The key is
taken before the work begins (a unique row, so that two senders cannot both take it) and given back when the work fails:
only successes are replayed. Keys are kept for a day, and each user's are its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel
from sqlalchemy import ColumnElement, and_, delete, or_, update

from ..problems import other_problem
from .database import Database, insert_new
from .tables import ReplyRow, timestamp

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


class Replies:
    def __init__(self, database: Database) -> None:
        self.database = database

    def answer_once(self, key: str | None, route: str, body: BaseModel, answer: Callable[[], Reply], owner: str = "") -> Reply:
        """`answer()`, or the reply that the same owner, key, route and body got before. Another body is refused with 422, a
        first request that is still being answered with 409."""
        if key is None:
            return answer()
        content = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
        place = (key, route, owner)
        before = self._take(place, content)
        if before is not None:
            return before
        try:
            reply = answer()
        except BaseException:
            with self.database.write() as session:
                session.execute(delete(ReplyRow).where(_at(place)))
            raise
        with self.database.write() as session:
            values = {"status": reply.status, "headers": json.dumps(reply.headers), "body": reply.body}
            session.execute(update(ReplyRow).where(_at(place)).values(values))
        return reply

    def _take(self, place: tuple[str, str, str], content: str) -> Reply | None:
        key, route, owner = place
        with self.database.write() as session:
            died = and_(ReplyRow.status.is_(None), ReplyRow.created_at < timestamp(ANSWER_SECONDS))
            session.execute(delete(ReplyRow).where(or_(ReplyRow.created_at < timestamp(KEPT_SECONDS), died)))
            values = {"key": key, "route": route, "owner": owner, "content": content, "created_at": timestamp()}
            if insert_new(session, ReplyRow, **values):
                return None
            row = session.get(ReplyRow, place)
        if row is None or ((row.status is None or row.body is None) and row.content == content):
            detail = f"the first request with the Idempotency-Key {key!r} is still being answered; try again in a second"
            return Reply.problem(other_problem("idempotency-in-flight", detail))
        if row.content != content:
            detail = f"the Idempotency-Key {key!r} came with another body before; send a new key with a new request"
            return Reply.problem(other_problem("idempotency-conflict", detail))
        assert row.status is not None
        assert row.body is not None
        return Reply(row.status, row.body, json.loads(row.headers or "{}"))


def _at(place: tuple[str, str, str]) -> ColumnElement[bool]:
    key, route, owner = place
    return and_(ReplyRow.key == key, ReplyRow.route == route, ReplyRow.owner == owner)
