"""Sessions: browsers that showed a key once and hold a cookie since.

The cookie is a random token, not the key; only its hash is kept. A session ends after SESSION_HOURS, on signing out, and
with its key.
"""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import delete, select

from .database import Database, patient
from .tables import SessionRow, timestamp

SESSION_HOURS = 12


class Sessions:
    def __init__(self, database: Database) -> None:
        self.database = database

    @patient
    def begin(self, key_id: str) -> str:
        """Let a browser in for a key; returns the token for its cookie."""
        token = secrets.token_urlsafe(32)
        with self.database.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at < timestamp()))
            session.add(SessionRow(hash=_hash(token), key_id=key_id, expires_at=timestamp(-3600.0 * SESSION_HOURS)))
        return token

    @patient
    def key_id(self, token: str) -> str | None:
        """Whose session it is; None when it has ended or never was."""
        with self.database.read() as session:
            query = select(SessionRow.key_id).where(SessionRow.hash == _hash(token), SessionRow.expires_at >= timestamp())
            return session.scalar(query)

    @patient
    def end(self, token: str) -> None:
        """Sign out; ending what has ended does nothing."""
        with self.database.write() as session:
            session.execute(delete(SessionRow).where(SessionRow.hash == _hash(token)))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
