"""Leases in a table of their own; an index of queued trials by when a message was sent for them, search by search."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.database.times import UtcDateTime
from gridfleet.storage.migrations.new_tables import make_room

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

IS_QUEUED = sa.text("state = 'queued'")


def upgrade() -> None:
    """Give running trials their leases in the new table.

    The column of before stays, and is empty: a view of a user's that shows all of trials would keep it from being
    dropped.
    """
    make_room(op.get_bind(), "leases")
    op.create_table(
        "leases",
        sa.Column(
            "trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("token", sa.String(length=32), nullable=False, comment="of the attempt that holds it"),
        sa.Column("worker_id", sa.Text(), nullable=False, comment="the worker process that holds it"),
        sa.Column("expires_at", UtcDateTime(), nullable=False, comment="held until then without a heartbeat"),
        sa.Column("memory_mb", sa.Integer(), nullable=True, comment="most memory of the worker process so far"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_leases_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_leases")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE leases SET (fillfactor = 50)")
    op.execute(
        "INSERT INTO leases (trial_id, token, worker_id, expires_at, memory_mb) "
        "SELECT id, token, COALESCE(worker_id, ''), COALESCE(lease_expires_at, created_at), peak_memory_mb "
        "FROM trials WHERE state = 'running'"
    )
    op.execute("UPDATE trials SET lease_expires_at = NULL WHERE state = 'running'")
    op.drop_index("ix_trials_running", "trials")
    op.create_index(
        "ix_trials_queued_published",
        "trials",
        ["search_id", "published_at", "id"],
        postgresql_where=IS_QUEUED,
        sqlite_where=IS_QUEUED,
    )
