"""Indexes for reports of large searches: the most memory of their trials, and whose results those took."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the indexes, of rows that have a value only: most trials take no result."""
    for name, columns, value in (
        ("ix_trials_peak_memory", ["search_id", "peak_memory_mb"], "peak_memory_mb"),
        ("ix_trials_reused_from", ["search_id", "number", "reused_from"], "reused_from"),
    ):
        has_value = sa.text(f"{value} IS NOT NULL")
        op.create_index(name, "trials", columns, postgresql_where=has_value, sqlite_where=has_value)
