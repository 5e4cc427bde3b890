"""Attempts end in one of the ways that ``Outcome`` lists, and in no other."""

import sqlalchemy as sa
from alembic import op

import gridfleet.storage.database.times

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: All that any release wrote, and ``pruned``, which is to come.
OUTCOMES = (
    "outcome IN ('completed', 'failed', 'pruned', 'cancelled', 'released', 'timeout', 'lease_expired', 'worker_lost', "
    "'out_of_memory', 'payload_error', 'worker_error')"
)


def upgrade() -> None:
    """Add a CHECK; every row stays as it is."""
    if op.get_bind().dialect.name == "sqlite":
        _make_anew()
    else:
        op.create_check_constraint(op.f("ck_attempts_known_outcome"), "attempts", OUTCOMES)


def _make_anew() -> None:
    """Make the table anew, for SQLite adds a CHECK only together with its table.

    Not by a rename, as Alembic's batch mode does it: SQLite refuses that while a view of a user's, which names
    the table, finds none.
    """
    op.execute("CREATE TEMPORARY TABLE kept_attempts AS SELECT * FROM attempts")
    op.drop_table("attempts")
    op.create_table(
        "attempts",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("started_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.Column("ended_at", gridfleet.storage.database.times.UtcDateTime(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_attempts_outcome")),
        sa.CheckConstraint(OUTCOMES, name=op.f("ck_attempts_known_outcome")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_attempts_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name=op.f("pk_attempts")),
    )
    columns = "trial_id, attempt, token, worker_id, started_at, ended_at, outcome, error"
    op.execute(f"INSERT INTO attempts ({columns}) SELECT {columns} FROM kept_attempts")  # noqa: S608 - a constant
    op.execute("DROP TABLE kept_attempts")
