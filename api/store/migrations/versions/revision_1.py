"""The store of bitplan 0.1.0."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("model", sa.String, nullable=False, index=True),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("summary", sa.String, nullable=False),
        sa.Column("document", sa.String, nullable=False),
        sa.Column("evidence", sa.String),
    )
    op.create_table(
        "profiles",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("model", sa.String, nullable=False, index=True),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("request", sa.String, nullable=False),
        sa.Column("summary", sa.String, nullable=False),
        sa.Column("document", sa.String, nullable=False),
    )
    op.create_table(
        "inventories",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("fingerprint", sa.String, nullable=False, unique=True),
        sa.Column("model", sa.String, nullable=False, index=True),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("document", sa.String, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("content", sa.String, nullable=False, index=True),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("input", sa.String, nullable=False),
        sa.Column("progress", sa.String),
        sa.Column("result", sa.String),
        sa.Column("error", sa.String),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("started_at", sa.String),
        sa.Column("finished_at", sa.String),
    )
    op.create_table(
        "replies",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("route", sa.String, primary_key=True),
        sa.Column("content", sa.String, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.String),
        sa.Column("body", sa.String),
        sa.Column("created_at", sa.String, nullable=False),
    )
    marks = op.create_table(
        "marks", sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False)
    )
    op.bulk_insert(marks, [{"name": "schema", "value": "1"}])
