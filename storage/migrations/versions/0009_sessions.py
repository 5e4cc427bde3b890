"""A search names the Python process that submitted it."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; searches of before have none, and their signatures do not count it."""
    op.add_column(
        "searches",
        sa.Column(
            "session",
            sa.Text(),
            comment="the Python process that submitted it: a worker process evaluates trials of one; NULL: of any",
        ),
    )
