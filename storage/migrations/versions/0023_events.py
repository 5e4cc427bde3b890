"""What people are to be told of searches: an outbox, and whether anybody is to be told."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.database.times import UtcDateTime
from gridfleet.storage.migrations.new_tables import make_room

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add a table, and a column that says that nobody is to be told until a scheduler says otherwise."""
    make_room(op.get_bind(), "events")
    op.create_table(
        "events",
        sa.Column("id", ID, sa.Identity(), nullable=False),
        sa.Column("search_id", ID, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), comment="what the search ended as; NULL: it goes on"),
        sa.Column("trial_id", ID, comment="the trial that is the new best; NULL: no trial's event"),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("n_tries", sa.Integer(), nullable=False, server_default="0", comment="how often it was sent"),
        sa.Column("tried_at", UtcDateTime(), comment="when it was sent last"),
        sa.Column("not_before", UtcDateTime(), comment="when it is sent again; NULL: at once"),
        sa.Column("sent_at", UtcDateTime(), comment="when its receiver took it; NULL: not yet"),
        sa.Column("error", sa.Text(), comment="why its receiver did not take it"),
        sa.CheckConstraint("kind IN ('best', 'ended', 'failed')", name=op.f("ck_events_kind")),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_events_search_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_search_id", "events", ["search_id", "id"])
    op.add_column(
        "reconciler",
        sa.Column(
            "notifies",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="whether events are written, for somebody is told of them",
        ),
    )
