"""The views say what came of a search, and whether anything goes on: failed, timed out, paused, waiting."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

# As storage/search_states.py; but of an embedded fleet, a view knows the workers, and not the lock.
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
# As in 0018, but for the state.
BEST_TRIALS = """
    SELECT s.name AS search, s.id AS search_id, {state}, s.refit_metric AS metric,
           t.mean_test_score AS best_score, t.std_test_score, t.params AS best_params,
           t.number, t.id AS trial_id
      FROM searches s
      LEFT JOIN trials t ON t.id = (
           SELECT b.id FROM trials b
            WHERE b.search_id = s.id AND b.mean_test_score IS NOT NULL
            ORDER BY b.mean_test_score DESC, b.number LIMIT 1)
     WHERE s.refit_of IS NULL
    """
SEARCH_PROGRESS = """
    SELECT d.*,
           CASE WHEN d.done < d.total AND d.done > 0 AND d.state = 'running'
                THEN d.seconds_running / d.done * (d.total - d.done) END AS seconds_left
      FROM (SELECT c.search, c.search_id, c.state, c.total, c.queued, c.running,
                   c.total - c.queued - c.running - c.failed - c.pruned - c.cancelled AS completed,
                   c.failed, c.pruned, c.cancelled, c.total - c.queued - c.running AS done, c.seconds_running
              FROM (SELECT s.name AS search, s.id AS search_id, {state}, s.n_trials AS total, {counts},
                           {seconds_running} AS seconds_running
                      FROM searches s WHERE s.refit_of IS NULL) c) d
    """
SECONDS_RUNNING = {
    "postgresql": "EXTRACT(EPOCH FROM COALESCE(s.finished_at, clock_timestamp()) - s.started_at)",
    "sqlite": "(julianday(COALESCE(s.finished_at, 'now')) - julianday(s.started_at)) * 86400.0",
}
COUNTED = ("queued", "running", "failed", "pruned", "cancelled")


def upgrade() -> None:
    """Replace the two views that have a search's state; their columns and types stay."""
    dialect = op.get_bind().dialect.name
    state = STATE.format(since=SINCE[dialect])
    counts = ", ".join(
        f"(SELECT COUNT(*) FROM trials t WHERE t.search_id = s.id AND t.state = '{state}') AS {state}"  # noqa: S608 - constants
        for state in COUNTED
    )
    _replace_view("best_trials", BEST_TRIALS.format(state=state))
    _replace_view(
        "search_progress",
        SEARCH_PROGRESS.format(state=state, counts=counts, seconds_running=SECONDS_RUNNING[dialect]),
    )


def _replace_view(name: str, query: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
    else:  # with its rights, and with what others made of it
        op.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
