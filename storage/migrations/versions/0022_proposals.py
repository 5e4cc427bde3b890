"""Trials that are proposed while their search goes on: of what, by what, with which seed, and what each ask knew."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
COLUMNS = {
    "searches": (
        sa.Column("space", sa.Text(), comment="JSON: what may be proposed; NULL: its trials were stored with it"),
        sa.Column("sampler", sa.Text(), comment="JSON: what proposes, with its settings"),
        sa.Column("seed", sa.BigInteger(), comment="of its proposals"),
        sa.Column(
            "lookahead",
            sa.Integer(),
            comment="proposal n is made when of the trials before it all but the last lookahead - 1 have ended",
        ),
        sa.Column(
            "asks_in_order",
            sa.Boolean(),
            comment="whether proposal n knows the results of 0 to n - lookahead and no others; else all that are there",
        ),
        sa.Column("n_asked", sa.Integer(), comment="trials that were proposed so far"),
        sa.Column(
            "is_exhausted",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="whether its space has nothing that was not proposed",
        ),
        sa.Column("optuna_version", sa.String(length=32), comment="where it was submitted"),
    ),
    "trials": (
        sa.Column(
            "sample", JSON, comment="of a proposal: its point in searches.space; NULL: it was stored with its search"
        ),
        sa.Column(
            "asked_without", JSON, comment="of a proposal: numbers of earlier trials whose results it did not know"
        ),
    ),
}

# in keep_search: who proposes trials says how many there are, which only grows
LAST_FREE = "OLD.error := NEW.error;"
PROPOSALS_FREE = """OLD.error := NEW.error;
  IF NEW.n_asked >= OLD.n_asked AND NEW.n_asked <= OLD.n_trials AND NEW.is_exhausted >= OLD.is_exhausted THEN
    OLD.n_asked := NEW.n_asked;
    OLD.is_exhausted := NEW.is_exhausted;
  END IF;"""
# in keep_trial: what a trial consists of
LAST_KEPT = "{0}.reuse_key, {0}.reused_from)"
SAMPLE_KEPT = "{0}.reuse_key, {0}.reused_from, {0}.sample, {0}.asked_without)"
# who may add trials and may not submit adds what a search that goes on asked for
ADD_TRIAL = """
BEGIN
  IF has_table_privilege('split_scores', 'DELETE') THEN
    RETURN NEW;
  END IF;
  IF NEW.sample IS NULL OR NEW.state <> 'queued' OR NEW.attempt <> 0 OR NEW.failures <> 0 OR NEW.number < 0
    OR num_nonnulls(NEW.mean_test_score, NEW.reuse_key, NEW.reused_from, NEW.seed, NEW.started_at, NEW.finished_at) > 0
    OR NOT EXISTS (SELECT FROM searches WHERE id = NEW.search_id AND finished_at IS NULL AND NEW.number < n_asked)
  THEN
    RAISE insufficient_privilege
      USING MESSAGE = format('permission denied to add trial %s to search %s', NEW.number, NEW.search_id);
  END IF;
  RETURN NEW;
END
"""

STATE = """CAST(CASE WHEN s.state = 'cancelled' THEN s.state
                WHEN s.finished_at IS NOT NULL AND s.error IS NOT NULL THEN 'timed out'
                WHEN s.finished_at IS NOT NULL AND NOT EXISTS (
                     SELECT 1 FROM trials f WHERE f.search_id = s.id AND f.state = 'completed') THEN 'failed'
                WHEN s.finished_at IS NULL AND s.paused_at IS NOT NULL THEN 'paused'
                WHEN s.finished_at IS NULL AND NOT EXISTS (
                     SELECT 1 FROM workers w
                      WHERE w.ended_at IS NULL AND w.stopped_reason IS NULL AND w.id NOT LIKE '%/0'
                        AND w.last_seen_at > {since}) THEN 'waiting'
                ELSE s.state END AS VARCHAR(16)) AS state"""
SINCE = {
    "postgresql": "now() - interval '60 seconds'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f+00:00', 'now', '-60 seconds')",
}
# As in 0021, but that trials may still have to be proposed.
SEARCH_PROGRESS = """
    SELECT d.*,
           CASE WHEN d.done < d.total AND d.done > 0 AND d.state = 'running'
                THEN d.seconds_running / d.done * (d.total - d.done) END AS seconds_left
      FROM (SELECT c.search, c.search_id, c.state, c.total, c.queued, c.running,
                   c.stored - c.queued - c.running - c.failed - c.pruned - c.cancelled AS completed,
                   c.failed, c.pruned, c.cancelled, c.stored - c.queued - c.running AS done, c.seconds_running
              FROM (SELECT s.name AS search, s.id AS search_id, {state},
                           CASE WHEN s.is_exhausted THEN s.n_asked ELSE s.n_trials END AS total, {counts},
                           {seconds_running} AS seconds_running, COALESCE(s.n_asked, s.n_trials) AS stored
                      FROM searches s WHERE s.refit_of IS NULL) c) d
    """
SECONDS_RUNNING = {
    "postgresql": "EXTRACT(EPOCH FROM COALESCE(s.finished_at, clock_timestamp()) - s.started_at)",
    "sqlite": "(julianday(COALESCE(s.finished_at, 'now')) - julianday(s.started_at)) * 86400.0",
}
COUNTED = ("queued", "running", "failed", "pruned", "cancelled")


def upgrade() -> None:
    """Add columns, which are NULL for what was stored before; the view's columns and types stay."""
    for table, columns in COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    dialect = op.get_bind().dialect.name
    counts = ", ".join(
        f"(SELECT COUNT(*) FROM trials t WHERE t.search_id = s.id AND t.state = '{state}') AS {state}"  # noqa: S608 - constants
        for state in COUNTED
    )
    state = STATE.format(since=SINCE[dialect])
    view = SEARCH_PROGRESS.format(state=state, counts=counts, seconds_running=SECONDS_RUNNING[dialect])
    if dialect == "sqlite":
        op.execute("DROP VIEW search_progress")
        op.execute(f"CREATE VIEW search_progress AS {view}")
        return
    op.execute(f"CREATE OR REPLACE VIEW search_progress AS {view}")
    _change_function("keep_search", {LAST_FREE: PROPOSALS_FREE})
    _change_function("keep_trial", {LAST_KEPT.format(row): SAMPLE_KEPT.format(row) for row in ("NEW", "OLD")})
    schema = op.get_bind().dialect.identifier_preparer.quote(op.get_bind().dialect.default_schema_name or "public")
    op.execute(
        "CREATE FUNCTION add_trial() RETURNS trigger LANGUAGE plpgsql "
        # pg_temp last: it would be looked through first, and whoever may make temporary tables could replace these
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${ADD_TRIAL}$$"
    )
    op.execute("CREATE TRIGGER add_trial BEFORE INSERT ON trials FOR EACH ROW EXECUTE FUNCTION add_trial()")


def _change_function(name: str, changes: dict[str, str]) -> None:
    function = op.get_bind().exec_driver_sql(f"SELECT pg_get_functiondef('{name}()'::regprocedure)").scalar_one()
    for there, instead in changes.items():
        function = function.replace(there, instead)
    op.execute(function)
