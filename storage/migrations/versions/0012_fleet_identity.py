"""A name for the fleet, which its keys on a shared broker begin with."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table with its only row."""
    identity = op.create_table(
        "fleet_identity",
        sa.Column("id", sa.Text(), nullable=False, comment="random; its keys on the broker are gridfleet:<id>:…"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fleet_identity")),
    )
    op.bulk_insert(identity, [{"id": secrets.token_hex(6)}])
