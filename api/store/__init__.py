"""The store: what is kept in a database, SQLite or PostgreSQL, and the artifacts that are too large for one."""

from .store import Store

__all__ = ["Store"]
