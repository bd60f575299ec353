"""The store: plans, profiles, inventories, jobs and first replies, in SQLite or PostgreSQL."""

from .store import Store

__all__ = ["Store"]
