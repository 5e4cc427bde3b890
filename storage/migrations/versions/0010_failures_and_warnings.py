"""What fits and scores warned of, which exception a trial let out, and why a scorer failed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table and two columns; rows of before have none of it."""
    op.add_column("trials", sa.Column("exception", sa.Text(), comment="what scikit-learn lets out of fit, as JSON"))
    op.add_column("split_scores", sa.Column("score_error", sa.Text(), comment="traceback of the scorer"))
    op.create_table(
        "trial_warnings",
        sa.Column("trial_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False, comment="from 0, as they came"),
        sa.Column("category", sa.Text(), nullable=False, comment="its class, with its module unless that is builtins"),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("module", sa.Text(), comment="the module that warned; NULL: not known"),
        sa.Column("n_fits", sa.Integer(), nullable=False, comment="how many of the trial's fits warned so"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_trial_warnings_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "position", name=op.f("pk_trial_warnings")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER keep_scores BEFORE INSERT ON trial_warnings FOR EACH ROW EXECUTE FUNCTION keep_scores()"
        )
