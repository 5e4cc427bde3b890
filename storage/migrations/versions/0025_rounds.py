"""Rounds of halving searches: of which a trial is, and what it gets; the best is one of the last round.

An error of who proposes trials ends their search, and it is no time-out.
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

COLUMNS = (
    sa.Column("iter", sa.Integer(), comment="of a halving search: the round, from 0; NULL: its search has none"),
    sa.Column("n_resources", sa.Integer(), comment="what a candidate gets in that round"),
)
# in keep_trial: what a trial consists of
LAST_KEPT = "{0}.sample, {0}.asked_without)"
ROUND_KEPT = "{0}.sample, {0}.asked_without, {0}.iter, {0}.n_resources)"
IS_SCORED = sa.text("mean_test_score IS NOT NULL")

STATE = """CAST(CASE WHEN s.state = 'cancelled' THEN s.state
                WHEN s.finished_at IS NOT NULL AND s.error LIKE 'stopped after %' THEN 'timed out'
                WHEN s.finished_at IS NOT NULL AND (s.error IS NOT NULL OR NOT EXISTS (
                     SELECT 1 FROM trials f WHERE f.search_id = s.id AND f.state = 'completed')) THEN 'failed'
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
# As in 0021, but for the state, and that of a halving search the last round counts.
BEST_TRIALS = """
    SELECT s.name AS search, s.id AS search_id, {state}, s.refit_metric AS metric,
           t.mean_test_score AS best_score, t.std_test_score, t.params AS best_params,
           t.number, t.id AS trial_id
      FROM searches s
      LEFT JOIN trials t ON t.id = (
           SELECT b.id FROM trials b
            WHERE b.search_id = s.id AND b.mean_test_score IS NOT NULL
            ORDER BY b.iter DESC, b.mean_test_score DESC, b.number LIMIT 1)
     WHERE s.refit_of IS NULL
    """
# As in 0022, but for the state.
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
    """Add columns, which are NULL for what was stored before; columns and types of views stay."""
    for column in COLUMNS:
        op.add_column("trials", column)
    op.drop_index("ix_trials_best", "trials")
    op.create_index(
        "ix_trials_best",
        "trials",
        ["search_id", sa.text("iter DESC"), sa.text("mean_test_score DESC"), "number"],
        postgresql_where=IS_SCORED,
        sqlite_where=IS_SCORED,
    )
    dialect = op.get_bind().dialect.name
    counts = ", ".join(
        f"(SELECT COUNT(*) FROM trials t WHERE t.search_id = s.id AND t.state = '{state}') AS {state}"  # noqa: S608 - constants
        for state in COUNTED
    )
    state = STATE.format(since=SINCE[dialect])
    _replace_view("best_trials", BEST_TRIALS.format(state=state))
    seconds = SECONDS_RUNNING[dialect]
    _replace_view("search_progress", SEARCH_PROGRESS.format(state=state, counts=counts, seconds_running=seconds))
    if dialect == "postgresql":
        function = op.get_bind().exec_driver_sql("SELECT pg_get_functiondef('keep_trial()'::regprocedure)").scalar_one()
        for row in ("NEW", "OLD"):
            function = function.replace(LAST_KEPT.format(row), ROUND_KEPT.format(row))
        op.execute(function)


def _replace_view(name: str, query: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
    else:  # with its rights, and with what others made of it
        op.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
