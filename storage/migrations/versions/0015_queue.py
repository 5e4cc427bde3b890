"""An index of queued trials by when a message was sent for them, search by search."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

IS_QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    """Make the index."""
    op.create_index(
        "ix_trials_queued_published",
        "trials",
        ["search_id", "published_at", "id"],
        postgresql_where=IS_QUEUED,
        sqlite_where=IS_QUEUED,
    )
