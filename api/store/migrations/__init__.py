"""Alembic's folder: how the store's schema came to be. `migrate.py` runs it."""
