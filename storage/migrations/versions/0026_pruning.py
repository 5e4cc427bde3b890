"""Trials that are stopped early: how they stood when they were compared, and by what that was decided."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.database.times import UtcDateTime
from gridfleet.storage.migrations.new_tables import make_room

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"
COLUMNS: dict[str, tuple[sa.Column[Any], ...]] = {
    "searches": (
        sa.Column("pruner", sa.Text(), comment="JSON: what stops poor trials, with its settings; NULL: nothing does"),
        sa.Column("monitor", sa.Text(), comment="what trials are compared by between epochs: score, or a curve"),
    ),
    "trials": (
        sa.Column("pruned_split", sa.Integer(), comment="the split in or after which it was pruned; NULL: it was not"),
        sa.Column(
            "pruned_epoch", sa.Integer(), comment="epochs of that split after which it was pruned; NULL: at its end"
        ),
        sa.Column("pruned_value", sa.Double(), comment="what it was compared by then; NULL: not finite"),
    ),
}
# reports are written while a trial runs, and those of an attempt that was lost are replaced by those of the next one
KEEP_REPORTS = """
BEGIN
  IF TG_OP = 'DELETE' THEN
    IF has_table_privilege('split_scores', 'DELETE')
      OR EXISTS (SELECT FROM trials WHERE id = OLD.trial_id AND state = 'running')
    THEN
      RETURN OLD;
    END IF;
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s does not run: its reports stay', OLD.trial_id);
  END IF;
  IF NOT EXISTS (SELECT FROM trials WHERE id = NEW.trial_id AND state = 'running') THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s does not run: it reports nothing', NEW.trial_id);
  END IF;
  RETURN NEW;
END
"""


def upgrade() -> None:
    """Add columns, which are NULL for what was stored before, and a table."""
    make_room(op.get_bind(), "reports")
    for table, columns in COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "reports",
        sa.Column("trial_id", ID, nullable=False, autoincrement=False),
        sa.Column("split", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column(
            "step", sa.Integer(), nullable=False, autoincrement=False, comment="epochs trained; 0: the split has ended"
        ),
        sa.Column(
            "value",
            sa.Double(),
            comment="greater is better: of a loss its negative, of an ended split the mean so far; NULL: not finite",
        ),
        sa.Column("n_compared", sa.Integer(), nullable=False, comment="other trials that it was compared with"),
        sa.Column("rank", sa.Integer(), comment="its place among them, 1 is the best; NULL: value is none"),
        sa.Column("decision", sa.String(length=8), nullable=False),
        sa.Column("reported_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("decision IN ('kept', 'pruned')", name=op.f("ck_reports_decision")),
        sa.CheckConstraint(f"value {FINITE}", name=op.f("ck_reports_value_finite")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_reports_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "split", "step", name=op.f("pk_reports")),
    )
    if op.get_bind().dialect.name == "sqlite":
        return
    schema = op.get_bind().dialect.identifier_preparer.quote(op.get_bind().dialect.default_schema_name or "public")
    op.execute(
        "CREATE FUNCTION keep_reports() RETURNS trigger LANGUAGE plpgsql "
        # pg_temp last: it would be looked through first, and whoever may make temporary tables could replace these
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${KEEP_REPORTS}$$"
    )
    op.execute(
        "CREATE TRIGGER keep_reports BEFORE INSERT OR DELETE ON reports FOR EACH ROW EXECUTE FUNCTION keep_reports()"
    )
