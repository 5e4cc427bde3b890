"""A search is signed: which estimator, data, splits and combinations belong together."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; searches of before have no signature, so that none of their trials starts any more."""
    op.add_column(
        "searches",
        sa.Column(
            "signature",
            sa.String(length=64),
            comment="HMAC-SHA-256 of what a trial is evaluated by; NULL: of an older release",
        ),
    )
    if op.get_bind().dialect.name == "postgresql":  # SQLite has no comments
        op.alter_column("payloads", "signature", comment="HMAC-SHA-256 of kind, digest and size")
