"""How models train, where a trial's time goes, and which trials share compiled programs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FIT_MODES = "fit_mode IN ('exact', 'xla', 'auto', 'keras')"
TIMES = {
    "build_time": "seconds of the fits for all but what follows",
    "trace_time": "seconds in which TensorFlow traced programs",
    "compile_time": "seconds in which XLA compiled them",
    "train_time": "seconds of training",
    "score_time": "seconds of predicting and scoring",
    "record_time": "seconds of writing scores and learning curves",
}


def upgrade() -> None:
    """Add columns; trials of before keep NULL in them."""
    if op.get_bind().dialect.name == "sqlite":  # which adds a CHECK only together with its column
        op.execute(
            "ALTER TABLE searches ADD COLUMN fit_mode VARCHAR(16) DEFAULT 'exact' NOT NULL "
            f"CONSTRAINT ck_searches_fit_mode CHECK ({FIT_MODES})"
        )
    else:
        op.add_column("searches", sa.Column("fit_mode", sa.String(length=16), server_default="exact", nullable=False))
        op.create_check_constraint(op.f("ck_searches_fit_mode"), "searches", FIT_MODES)
    add = [
        sa.Column(
            "structure_digest",
            sa.String(length=64),
            comment="of the params that change a model's structure: equal ones share compiled programs",
        ),
        sa.Column("fit_mode", sa.String(length=16), comment="how its Keras models trained: exact, xla or keras"),
        sa.Column("fit_fallback_reason", sa.Text(), comment="why they trained as Keras does it"),
        *(sa.Column(name, sa.Double(), comment=comment) for name, comment in TIMES.items()),
    ]
    for column in add:
        op.add_column("trials", column)
    op.create_index(
        "ix_trials_queued_structure",
        "trials",
        ["search_id", "structure_digest", "id"],
        postgresql_where=sa.text("state = 'queued'"),
        sqlite_where=sa.text("state = 'queued'"),
    )
