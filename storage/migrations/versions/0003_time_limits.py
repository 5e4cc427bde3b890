"""Time limits of a search and of its trials, and pausing."""

import sqlalchemy as sa
from alembic import op

import gridfleet.storage.database.times

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns; searches of before have no limits."""
    op.add_column(
        "searches",
        sa.Column("trial_timeout", sa.Double(), comment="seconds that one attempt may take; NULL: the fleet's limit"),
    )
    op.add_column(
        "searches",
        sa.Column("search_timeout", sa.Double(), comment="seconds after started_at at which the search is stopped"),
    )
    op.add_column(
        "searches",
        sa.Column(
            "paused_at", gridfleet.storage.database.times.UtcDateTime(), comment="since when no trial of it starts"
        ),
    )
    # every claim asks which searches are paused, and every pass of the reconciler which are over time
    for name, column, where in (
        ("ix_searches_paused", "id", "paused_at IS NOT NULL"),
        ("ix_searches_unfinished", "id", "finished_at IS NULL"),
    ):
        op.create_index(name, "searches", [column], postgresql_where=sa.text(where), sqlite_where=sa.text(where))
