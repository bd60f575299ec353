"""What a list of one model's plans is sorted by: thousands of plans of one model are then not sorted for every page."""

from __future__ import annotations

from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    for name in ("bytes", "loss", "stored_bits_per_weight"):
        op.create_index(f"ix_plans_model_{name}", "plans", ["model", name])
    op.execute("UPDATE marks SET value = '3' WHERE name = 'schema'")
