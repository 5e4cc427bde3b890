"""When a reconciler last looked after the fleet, and where it runs."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.database.times import UtcDateTime

revision = "0014"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table of one row, which says that no pass is known."""
    table = op.create_table(
        "reconciler",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False, comment="1: there is one row"),
        sa.Column("hostname", sa.Text()),
        sa.Column("pid", sa.Integer()),
        sa.Column("last_pass_at", UtcDateTime(), comment="NULL: not since the table is there"),
        sa.CheckConstraint("id = 1", name=op.f("ck_reconciler_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reconciler")),
    )
    op.bulk_insert(table, [{"id": 1}])
