"""What a search was asked for, and by which key its trials' results are found again; cancelled trials may go on."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# as in 0005, but that a cancelled search may be opened again as well
KEEP_SEARCH = """
BEGIN
  IF OLD.finished_at IS NOT NULL AND NEW IS DISTINCT FROM OLD THEN
    -- what retry-failed and load_if_exists do
    IF NOT (NEW.state IN ('queued', 'running') AND NEW.finished_at IS NULL) THEN
      RAISE integrity_constraint_violation USING MESSAGE = format('search %s has ended and changes no more', OLD.id);
    END IF;
    IF NOT has_table_privilege('split_scores', 'DELETE') THEN
      RAISE insufficient_privilege
        USING MESSAGE = format('permission denied to open search %s again: scores are removed then', OLD.id);
    END IF;
  END IF;
  OLD.state := NEW.state;
  OLD.started_at := NEW.started_at;
  OLD.finished_at := NEW.finished_at;
  OLD.paused_at := NEW.paused_at;
  OLD.error := NEW.error;
  -- one without a name gets it once its id is known, before it has trials
  IF NEW IS DISTINCT FROM OLD AND EXISTS (SELECT FROM trials WHERE search_id = OLD.id) THEN
    RAISE integrity_constraint_violation USING MESSAGE = format('what search %s consists of never changes', OLD.id);
  END IF;
  RETURN NEW;
END
"""
# as in 0016, but that cancelled trials may be queued again, and that the owner gives a new trial another one's results
KEEP_TRIAL = """
BEGIN
  IF (NEW.id, NEW.search_id, NEW.number, NEW.params, NEW.params_digest, NEW.structure_digest, NEW.created_at,
      NEW.reuse_key, NEW.reused_from)
    IS DISTINCT FROM
    (OLD.id, OLD.search_id, OLD.number, OLD.params, OLD.params_digest, OLD.structure_digest, OLD.created_at,
     OLD.reuse_key, OLD.reused_from)
  THEN
    RAISE integrity_constraint_violation USING MESSAGE = format('what trial %s consists of never changes', OLD.id);
  END IF;
  IF OLD.state = 'queued' AND NEW.state IN ('completed', 'failed', 'pruned') THEN
    IF NEW.state = 'completed' AND OLD.reused_from IS NOT NULL AND has_table_privilege('trials', 'INSERT') THEN
      RETURN NEW;
    END IF;
    RAISE integrity_constraint_violation USING MESSAGE = format('trial %s is queued: nobody evaluates it', OLD.id);
  END IF;
  IF OLD.state IN ('queued', 'running') THEN
    RETURN NEW;
  END IF;
  -- what retry-failed and load_if_exists do, which are for those who may remove scores
  IF OLD.state IN ('failed', 'cancelled') AND NEW.state = 'queued'
    AND has_table_privilege('split_scores', 'DELETE')
  THEN
    RETURN NEW;
  END IF;
  IF NEW IS DISTINCT FROM OLD THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is %s and changes no more', OLD.id, OLD.state);
  END IF;
  RETURN NEW;
END
"""
# as in 0016, but for results that a new trial takes from another one
KEEP_SCORES = """
BEGIN
  IF NOT EXISTS (
    SELECT FROM trials
    WHERE id = NEW.trial_id
      AND (state = 'running'
           OR state = 'queued' AND reused_from IS NOT NULL AND has_table_privilege('trials', 'INSERT'))
  ) THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is not being recorded: it gets no scores', NEW.trial_id);
  END IF;
  RETURN NEW;
END
"""


def upgrade() -> None:
    """Add columns, which are NULL for what was stored before."""
    op.add_column("searches", sa.Column("splitter", sa.Text(), comment="cv as it was given, shortened"))
    op.add_column(
        "searches",
        sa.Column("space_digest", sa.String(64), comment="of the grid or the distributions; NULL: not seen into"),
    )
    op.add_column(
        "searches",
        sa.Column(
            "reuse",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="whether its trials took results that were there when it was stored",
        ),
    )
    op.add_column("searches", sa.Column("no_reuse", sa.Text(), comment="why trials have no reuse_key; NULL: all have"))
    op.add_column(
        "trials",
        sa.Column("reuse_key", sa.String(64), comment="of all that decides the result: equal keys, equal results"),
    )
    op.add_column(
        "trials",
        sa.Column(
            "reused_from",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            comment="the trial whose result this is; NULL: it has its own",
        ),
    )
    has_key = sa.text("reuse_key IS NOT NULL")
    op.create_index("ix_trials_reuse_key", "trials", ["reuse_key"], postgresql_where=has_key, sqlite_where=has_key)
    if op.get_bind().dialect.name == "postgresql":
        _replace_function("keep_search", KEEP_SEARCH)
        _replace_function("keep_trial", KEEP_TRIAL)
        _replace_function("keep_scores", KEEP_SCORES)


def _replace_function(name: str, body: str) -> None:
    dialect = op.get_bind().dialect
    schema = dialect.identifier_preparer.quote(dialect.default_schema_name or "public")
    op.execute(
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
        # pg_temp last: it would be looked through first, and whoever may make temporary tables could replace these
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${body}$$"
    )
