"""What the service needs: plans that are listed by narrow columns, owners, sweeps, keys, workers."""

from __future__ import annotations

import json
import math
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    _split_plans()
    _summarize_inventories()
    _own_jobs()
    _own_replies()
    _add_tables()
    op.execute("UPDATE marks SET value = '2' WHERE name = 'schema'")


def _split_plans() -> None:
    """Documents go into a table of their own; what lists show, filter and sort by stays."""
    op.create_table(
        "plan_documents",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("document", sa.String, nullable=False),
        sa.Column("evidence", sa.String),
    )
    op.execute("INSERT INTO plan_documents (id, document, evidence) SELECT id, document, evidence FROM plans")
    columns: list[sa.Column[Any]] = [
        sa.Column("metric", sa.String),
        sa.Column("budget", sa.String),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("loss", sa.Double),
        sa.Column("stored_bits_per_weight", sa.Double),
        sa.Column("render_fingerprint", sa.String),
    ]
    with op.batch_alter_table("plans") as plans:
        for column in columns:
            plans.add_column(column)
        plans.add_column(sa.Column("verified", sa.Boolean))
        plans.add_column(sa.Column("measured_loss", sa.Double))
    _fill_plans()
    with op.batch_alter_table("plans") as plans:
        for column in columns:
            plans.alter_column(column.name, existing_type=column.type, nullable=False)
        plans.drop_column("document")
        plans.drop_column("evidence")
    for name in ("bytes", "loss", "stored_bits_per_weight"):
        op.create_index(f"ix_plans_{name}", "plans", [name])


def _fill_plans() -> None:
    connection = op.get_bind()
    plans = sa.table(
        "plans", *(sa.column(name) for name in ("number", "metric", "budget", "bytes", "loss", "render_fingerprint"))
    )
    plans.append_column(sa.column("stored_bits_per_weight", sa.Double))
    plans.append_column(sa.column("verified", sa.Boolean))
    plans.append_column(sa.column("measured_loss", sa.Double))
    query = sa.text("SELECT number, summary, document, evidence FROM plans WHERE number > :after ORDER BY number LIMIT 100")
    after = 0
    while rows := connection.execute(query, {"after": after}).all():
        for number, summary, document, evidence in rows:
            known = json.loads(summary)
            values = {name: known[name] for name in ("metric", "budget", "bytes", "loss", "stored_bits_per_weight")}
            values["render_fingerprint"] = json.loads(document)["provenance"]["render_fingerprint"]
            if evidence is not None:
                measured = json.loads(evidence)
                values["verified"] = bool(measured.get("passed"))
                values["measured_loss"] = (measured.get("loss") or {}).get("measured")
            connection.execute(plans.update().where(plans.c.number == number).values(values))
        after = rows[-1][0]


def _summarize_inventories() -> None:
    with op.batch_alter_table("inventories") as inventories:
        inventories.add_column(sa.Column("summary", sa.String))
    connection = op.get_bind()
    for (number,) in connection.execute(sa.text("SELECT number FROM inventories")).all():
        document = connection.execute(sa.text("SELECT document FROM inventories WHERE number = :n"), {"n": number}).scalar()
        summary = json.dumps(_summary(json.loads(str(document))))
        connection.execute(sa.text("UPDATE inventories SET summary = :s WHERE number = :n"), {"s": summary, "n": number})
    with op.batch_alter_table("inventories") as inventories:
        inventories.alter_column("summary", existing_type=sa.String(), nullable=False)


def _summary(inventory: dict[str, Any]) -> dict[str, Any]:
    matrices = [matrix for unit in inventory["units"] for matrix in unit["matrices"]]
    return {
        "architecture": inventory["architecture"],
        "units": len(inventory["units"]),
        "parameters": sum(math.prod(matrix["shape"]) for matrix in matrices)
        + sum(math.prod(tensor["shape"]) for tensor in inventory["fixed"]),
    }


def _own_jobs() -> None:
    under_way = sa.text("status IN ('queued', 'running')")
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("owner", sa.String, nullable=False, server_default=""))
        jobs.add_column(sa.Column("parent", sa.String))
    op.drop_index("ix_jobs_content", "jobs")
    op.drop_index("ix_jobs_status", "jobs")
    op.create_index("ix_jobs_status_kind", "jobs", ["status", "kind"])
    op.create_index("ix_jobs_owner", "jobs", ["owner"])
    op.create_index("ix_jobs_parent", "jobs", ["parent"])
    # The index that follows allows one job of a content at a time; version 1 left that to its transactions.
    op.execute(
        "UPDATE jobs SET content = content || ' ' || id WHERE status IN ('queued', 'running') AND EXISTS (SELECT 1 FROM jobs "
        "AS other WHERE other.content = jobs.content AND other.number < jobs.number AND other.status IN ('queued', 'running'))"
    )
    op.create_index("ix_jobs_under_way", "jobs", ["content"], unique=True, sqlite_where=under_way, postgresql_where=under_way)


def _own_replies() -> None:
    connection = op.get_bind()
    kept = [dict(row) for row in connection.execute(sa.text("SELECT * FROM replies")).mappings()]
    op.drop_table("replies")
    replies = op.create_table(
        "replies",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("route", sa.String, primary_key=True),
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("content", sa.String, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.String),
        sa.Column("body", sa.String),
        sa.Column("created_at", sa.String, nullable=False, index=True),
    )
    op.bulk_insert(replies, [{**reply, "owner": ""} for reply in kept])


def _add_tables() -> None:
    op.create_table(
        "sweeps",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("job_id", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("request", sa.String, nullable=False),
        sa.Column("content", sa.String, nullable=False, index=True),
    )
    op.create_table(
        "sweep_cells",
        sa.Column("sweep_id", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("metric", sa.String, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("budget", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("plan_id", sa.String),
        sa.Column("error", sa.String),
    )
    op.create_table(
        "keys",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("scope", sa.String, nullable=False),
        sa.Column("prefix", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False, unique=True),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("expires_at", sa.String),
        sa.Column("last_used_at", sa.String),
        sa.Column("revoked_at", sa.String),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String, primary_key=True),
        sa.Column("key_id", sa.String, nullable=False, index=True),
        sa.Column("expires_at", sa.String, nullable=False, index=True),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.Double, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("job_id", sa.String),
        sa.Column("seen_at", sa.String, nullable=False),
    )
