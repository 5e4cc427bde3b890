"""What operators see of worker processes, and the flag by which they drain them; rows of the long gone may go."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.database.times import UtcDateTime

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# the workers' role may remove rows and write last_seen_at: of nobody who lives, for that column never goes back
KEEP_WORKER = """
BEGIN
  IF TG_OP = 'UPDATE' THEN
    NEW.last_seen_at := greatest(NEW.last_seen_at, OLD.last_seen_at);
    RETURN NEW;
  END IF;
  IF OLD.last_seen_at > clock_timestamp() - interval '7 days' THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('worker %s was seen in the last 7 days: its row stays', OLD.id);
  END IF;
  RETURN OLD;
END
"""


def upgrade() -> None:
    """Add columns; rows of before know nothing of their machine, and are not known to have ended."""
    op.add_column("workers", sa.Column("n_cores", sa.Integer(), comment="of its machine or container"))
    op.add_column("workers", sa.Column("memory_limit_mb", sa.Integer(), comment="what it may take"))
    op.add_column("workers", sa.Column("ended_at", UtcDateTime(), comment="NULL: not known to have ended"))
    op.add_column(
        "workers",
        sa.Column(
            "draining",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="its worker is to take nothing new, and to end",
        ),
    )
    dialect = op.get_bind().dialect
    if dialect.name != "postgresql":
        return
    schema = dialect.identifier_preparer.quote(dialect.default_schema_name or "public")
    op.execute(
        "CREATE FUNCTION keep_worker() RETURNS trigger LANGUAGE plpgsql "
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${KEEP_WORKER}$$"
    )
    op.execute(
        "CREATE TRIGGER keep_worker BEFORE UPDATE OR DELETE ON workers FOR EACH ROW EXECUTE FUNCTION keep_worker()"
    )
