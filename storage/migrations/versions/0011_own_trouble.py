"""Attempts that a worker hands back for its own trouble, workers that took themselves out, and peak memory."""

import sqlalchemy as sa
from alembic import op

import gridfleet.storage.database.times

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

#: As in 0004, and ``handed_back``.
OUTCOMES = (
    "outcome IN ('completed', 'failed', 'pruned', 'cancelled', 'released', 'timeout', 'lease_expired', 'worker_lost', "
    "'out_of_memory', 'payload_error', 'worker_error', 'handed_back')"
)


def upgrade() -> None:
    """Add four columns and an outcome; every row stays as it is."""
    op.add_column(
        "searches",
        sa.Column("needs_python", sa.String(length=8), comment="minor version that its functions need; NULL: any"),
    )
    op.add_column(
        "trials",
        sa.Column(
            "peak_memory_mb",
            sa.Integer(),
            comment="most memory of the worker process in the last attempt, as far as it is known",
        ),
    )
    op.add_column(
        "workers",
        sa.Column("stopped_reason", sa.Text(), comment="why its worker took itself out; NULL: it did not"),
    )
    if op.get_bind().dialect.name == "sqlite":
        _make_attempts_anew()
        return
    op.add_column(
        "attempts",
        sa.Column("peak_memory_mb", sa.Integer(), comment="most memory of the worker process, as far as it is known"),
    )
    op.drop_constraint(op.f("ck_attempts_known_outcome"), "attempts", type_="check")
    op.create_check_constraint(op.f("ck_attempts_known_outcome"), "attempts", OUTCOMES)


def _make_attempts_anew() -> None:
    """Make the table anew, for SQLite adds a CHECK only together with its table (0004 says why not by a rename)."""
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
        sa.Column("peak_memory_mb", sa.Integer(), nullable=True),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_attempts_outcome")),
        sa.CheckConstraint(OUTCOMES, name=op.f("ck_attempts_known_outcome")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_attempts_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name=op.f("pk_attempts")),
    )
    columns = "trial_id, attempt, token, worker_id, started_at, ended_at, outcome, error"
    op.execute(f"INSERT INTO attempts ({columns}) SELECT {columns} FROM kept_attempts")  # noqa: S608 - a constant
    op.execute("DROP TABLE kept_attempts")
