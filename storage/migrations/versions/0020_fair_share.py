"""Of which search how many trials run, and when the last of each started; the priority of a search may change."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0017"
branch_labels = None
depends_on = None

IS_QUEUED = sa.text("state = 'queued'")
HAS_STARTED = sa.text("started_at IS NOT NULL")
#: Of the trigger function that keeps what a search consists of (0005), the last column that it lets change.
LAST_FREE, PRIORITY_FREE = "OLD.error := NEW.error;", "OLD.error := NEW.error;\n  OLD.priority := NEW.priority;"


def upgrade() -> None:
    """Tell of each lease its search, and let the trigger pass a new priority; workers' role has no right to it."""
    op.add_column(
        "leases",
        sa.Column(
            "search_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=True,
            comment="the trial's: of which search how many run",
        ),
    )
    op.execute("UPDATE leases SET search_id = (SELECT t.search_id FROM trials t WHERE t.id = leases.trial_id)")
    op.create_index(
        "ix_trials_started",
        "trials",
        ["search_id", "started_at"],
        postgresql_where=HAS_STARTED,
        sqlite_where=HAS_STARTED,
    )
    op.drop_index("ix_trials_queued", "trials")
    op.create_index(
        "ix_trials_queued", "trials", ["search_id", "id"], postgresql_where=IS_QUEUED, sqlite_where=IS_QUEUED
    )
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    function = connection.exec_driver_sql("SELECT pg_get_functiondef('keep_search()'::regprocedure)").scalar_one()
    op.execute(function.replace(LAST_FREE, PRIORITY_FREE))
