"""Learning curves as arrays, which the view ``epochs`` shows; scores before a trial's end; views that count less."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.migrations.learning_curves import convert_rest

revision = "0016"
down_revision = "0014"
branch_labels = None
depends_on = None

#: The rows of before. In SQLite ``values`` is a word of its own language.
EPOCHS = {
    "postgresql": """
        CREATE VIEW epochs AS
        SELECT c.trial_id, c.split, (v.place - 1)::integer AS epoch, c.metric, v.value
          FROM curves c, unnest(c.values) WITH ORDINALITY AS v(value, place)
        """,
    "sqlite": """
        CREATE VIEW epochs AS
        SELECT c.trial_id, c.split, v.key AS epoch, c.metric, v.value
          FROM curves c, json_each(c."values") v
        """,
}

# As in 0001, but that ``search`` can be asked for before all trials of all searches are ranked.
LEADERBOARD = """
    SELECT s.name AS search,
           RANK() OVER (PARTITION BY s.name ORDER BY t.mean_test_score DESC) AS rank_test_score,
           t.number, t.mean_test_score, t.std_test_score, t.params, t.mean_fit_time, t.id AS trial_id
      FROM trials t JOIN searches s ON s.id = t.search_id
     WHERE t.mean_test_score IS NOT NULL
    """
# As in 0001, but that completed trials, which are the most, are not counted: all others are.
SEARCH_PROGRESS = """
    SELECT d.*,
           CASE WHEN d.done < d.total AND d.done > 0 AND d.state = 'running'
                THEN d.seconds_running / d.done * (d.total - d.done) END AS seconds_left
      FROM (SELECT c.search, c.search_id, c.state, c.total, c.queued, c.running,
                   c.total - c.queued - c.running - c.failed - c.pruned - c.cancelled AS completed,
                   c.failed, c.pruned, c.cancelled, c.total - c.queued - c.running AS done, c.seconds_running
              FROM (SELECT s.name AS search, s.id AS search_id, s.state, s.n_trials AS total, {counts},
                           {seconds_running} AS seconds_running
                      FROM searches s) c) d
    """
SECONDS_RUNNING = {
    "postgresql": "EXTRACT(EPOCH FROM COALESCE(s.finished_at, clock_timestamp()) - s.started_at)",
    "sqlite": "(julianday(COALESCE(s.finished_at, 'now')) - julianday(s.started_at)) * 86400.0",
}
COUNTED = ("queued", "running", "failed", "pruned", "cancelled")

# as in 0005, but that nothing of a trial is written behind its end
KEEP_TRIAL = """
BEGIN
  IF (NEW.id, NEW.search_id, NEW.number, NEW.params, NEW.params_digest, NEW.structure_digest, NEW.created_at)
    IS DISTINCT FROM
    (OLD.id, OLD.search_id, OLD.number, OLD.params, OLD.params_digest, OLD.structure_digest, OLD.created_at)
  THEN
    RAISE integrity_constraint_violation USING MESSAGE = format('what trial %s consists of never changes', OLD.id);
  END IF;
  IF OLD.state = 'queued' AND NEW.state IN ('completed', 'failed', 'pruned') THEN
    RAISE integrity_constraint_violation USING MESSAGE = format('trial %s is queued: nobody evaluates it', OLD.id);
  END IF;
  IF OLD.state IN ('queued', 'running') THEN
    RETURN NEW;
  END IF;
  -- what retry-failed does, which is for those who may remove scores
  IF OLD.state = 'failed' AND NEW.state = 'queued' AND has_table_privilege('split_scores', 'DELETE') THEN
    RETURN NEW;
  END IF;
  IF NEW IS DISTINCT FROM OLD THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is %s and changes no more', OLD.id, OLD.state);
  END IF;
  RETURN NEW;
END
"""
# a trial is recorded in this order: its scores, its final state, the end of its attempt
KEEP_SCORES = """
BEGIN
  IF NOT EXISTS (SELECT FROM trials WHERE id = NEW.trial_id AND state = 'running') THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is not being recorded: it gets no scores', NEW.trial_id);
  END IF;
  RETURN NEW;
END
"""


def upgrade() -> None:
    """Convert what was not converted before the migration began, and replace the table by a view."""
    connection = op.get_bind()
    convert_rest(connection)
    op.drop_table("epochs")
    op.execute(EPOCHS[connection.dialect.name])
    counts = ", ".join(
        f"(SELECT COUNT(*) FROM trials t WHERE t.search_id = s.id AND t.state = '{state}') AS {state}"  # noqa: S608 - constants
        for state in COUNTED
    )
    _replace_view("leaderboard", LEADERBOARD)
    _replace_view(
        "search_progress",
        SEARCH_PROGRESS.format(counts=counts, seconds_running=SECONDS_RUNNING[connection.dialect.name]),
    )
    is_ended = sa.text("ended_at IS NOT NULL")
    op.create_index("ix_attempts_ended", "attempts", ["ended_at"], postgresql_where=is_ended, sqlite_where=is_ended)
    if connection.dialect.name == "postgresql":  # not before: it lets nobody write scores of a trial that has ended
        op.execute("CREATE TRIGGER keep_scores BEFORE INSERT ON curves FOR EACH ROW EXECUTE FUNCTION keep_scores()")
        _replace_function("keep_trial", KEEP_TRIAL)
        _replace_function("keep_scores", KEEP_SCORES)


def _replace_view(name: str, query: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
    else:  # with its rights, and with what others made of it
        op.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")


def _replace_function(name: str, body: str) -> None:
    dialect = op.get_bind().dialect
    schema = dialect.identifier_preparer.quote(dialect.default_schema_name or "public")
    op.execute(
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
        # pg_temp last: it would be looked through first, and whoever may make temporary tables could replace these
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${body}$$"
    )
