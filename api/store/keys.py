"""API keys: made here, shown once, kept as a hash.

A secret is 256 random bits, so that its plain SHA-256 tells nobody anything about it and no slow hash is needed.
"""

from __future__ import annotations

import builtins
import hashlib
import secrets
from contextlib import suppress

from sqlalchemy import func, select, update

from ...allocator.errors import DiskFull, NotFound, StoreUnavailable, UsageError
from ..schema import KeyView, Scope
from .database import Database, patient
from .tables import KeyRow, timestamp

PREFIX = "bp_"
NOBODY = "local"  # the owner of what was asked for without a key
SHOWN = 11  # characters of a secret that are kept, to tell keys apart
USE_SECONDS = 60.0  # a use is written down at most so often, since each writing takes the store's lock
DAY_SECONDS = 86400.0
LONGEST_DAYS = 36500.0


class Keys:
    def __init__(self, database: Database) -> None:
        self.database = database

    @patient
    def create(self, name: str, scope: Scope, days: float | None = None) -> tuple[KeyView, str]:
        """A new key and its secret, which cannot be shown again; good for `days`, or until revoked."""
        if not name.strip() or name == NOBODY:
            raise UsageError(f"a key needs a name, and {NOBODY!r} is what jobs without a key are called; say whose it is")
        if days is not None and not 0 < days <= LONGEST_DAYS:
            raise UsageError(f"a key cannot be good for {days:g} days; give more than 0 and at most {LONGEST_DAYS:g}")
        secret = PREFIX + secrets.token_urlsafe(32)
        row = KeyRow(
            id=f"key_{secrets.token_hex(8)}",
            name=name,
            scope=scope,
            prefix=secret[:SHOWN],
            hash=_hash(secret),
            created_at=timestamp(),
            expires_at=None if days is None else timestamp(seconds_ago=-days * DAY_SECONDS),
        )
        with self.database.write() as session:
            session.add(row)
            session.flush()
            return _view(row), secret

    @patient
    def check(self, secret: str) -> KeyView | None:
        """The key that a secret belongs to; None for one that is unknown, expired or revoked."""
        now = timestamp()
        with self.database.read() as session:
            row = session.scalar(select(KeyRow).where(KeyRow.hash == _hash(secret)))
        if row is None or not _is_good(row):
            return None
        if row.last_used_at is None or row.last_used_at < timestamp(seconds_ago=USE_SECONDS):
            row.last_used_at = now
            with suppress(DiskFull, StoreUnavailable), self.database.write() as session:  # no reason to refuse who only reads
                session.execute(update(KeyRow).where(KeyRow.id == row.id).values(last_used_at=now))
        return _view(row)

    @patient
    def good(self, key_id: str) -> KeyView | None:
        """The key of this id; None for one that is unknown, expired or revoked."""
        with self.database.read() as session:
            row = session.scalar(select(KeyRow).where(KeyRow.id == key_id))
        return _view(row) if row is not None and _is_good(row) else None

    @patient
    def list(self) -> builtins.list[KeyView]:
        """All keys, newest first, revoked ones too."""
        with self.database.read() as session:
            return [_view(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.number.desc()))]

    @patient
    def any(self) -> bool:
        """Whether there is a key that was not revoked."""
        with self.database.read() as session:
            return bool(session.scalar(select(func.count()).select_from(KeyRow).where(KeyRow.revoked_at.is_(None))))

    @patient
    def revoke(self, key_id: str) -> KeyView:
        """The key is good no more, from now on; revoking twice is revoking once. Raises NotFound."""
        with self.database.write() as session:
            row = session.scalar(select(KeyRow).where(KeyRow.id == key_id).with_for_update())
            if row is None:
                raise NotFound(f"there is no key {key_id!r}; GET /v1/keys lists those that are")
            row.revoked_at = row.revoked_at or timestamp()
            return _view(row)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _is_good(row: KeyRow) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > timestamp())


def _view(row: KeyRow) -> KeyView:
    return KeyView.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "scope": row.scope,
            "prefix": row.prefix,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "last_used_at": row.last_used_at,
            "revoked": row.revoked_at is not None,
        }
    )
