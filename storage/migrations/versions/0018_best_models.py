"""A search's best model is fitted on the fleet, by a search of its own that its views and lists do not show."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.migrations.new_tables import make_room

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
IS_REFIT = sa.text("refit_of IS NOT NULL")

# As in 0001, without refits.
BEST_TRIALS = """
    SELECT s.name AS search, s.id AS search_id, s.state, s.refit_metric AS metric,
           t.mean_test_score AS best_score, t.std_test_score, t.params AS best_params,
           t.number, t.id AS trial_id
      FROM searches s
      LEFT JOIN trials t ON t.id = (
           SELECT b.id FROM trials b
            WHERE b.search_id = s.id AND b.mean_test_score IS NOT NULL
            ORDER BY b.mean_test_score DESC, b.number LIMIT 1)
     WHERE s.refit_of IS NULL
    """
# As in 0016, without refits.
SEARCH_PROGRESS = """
    SELECT d.*,
           CASE WHEN d.done < d.total AND d.done > 0 AND d.state = 'running'
                THEN d.seconds_running / d.done * (d.total - d.done) END AS seconds_left
      FROM (SELECT c.search, c.search_id, c.state, c.total, c.queued, c.running,
                   c.total - c.queued - c.running - c.failed - c.pruned - c.cancelled AS completed,
                   c.failed, c.pruned, c.cancelled, c.total - c.queued - c.running AS done, c.seconds_running
              FROM (SELECT s.name AS search, s.id AS search_id, s.state, s.n_trials AS total, {counts},
                           {seconds_running} AS seconds_running
                      FROM searches s WHERE s.refit_of IS NULL) c) d
    """
SECONDS_RUNNING = {
    "postgresql": "EXTRACT(EPOCH FROM COALESCE(s.finished_at, clock_timestamp()) - s.started_at)",
    "sqlite": "(julianday(COALESCE(s.finished_at, 'now')) - julianday(s.started_at)) * 86400.0",
}
COUNTED = ("queued", "running", "failed", "pruned", "cancelled")

# as in 0017, but for the trial of a refit
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
  -- the trial of a refit whatever it came to, for its search is to be evaluated again
  IF NEW.state = 'queued' AND has_table_privilege('split_scores', 'DELETE') AND (
    OLD.state IN ('failed', 'cancelled')
    OR EXISTS (SELECT FROM searches WHERE id = OLD.search_id AND refit_of IS NOT NULL)
  ) THEN
    RETURN NEW;
  END IF;
  IF NEW IS DISTINCT FROM OLD THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is %s and changes no more', OLD.id, OLD.state);
  END IF;
  RETURN NEW;
END
"""
# a model is written as scores are: while its trial runs, and before its final state; and once
KEEP_MODEL = """
BEGIN
  IF NOT EXISTS (
    SELECT FROM trials JOIN searches ON searches.id = search_id
    WHERE trials.id = NEW.trial_id AND trials.state = 'running' AND refit_of IS NOT NULL
  ) THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is no refit that is being recorded: it gets no model', NEW.trial_id);
  END IF;
  RETURN NEW;
END
"""


def upgrade() -> None:
    """Add two columns of searches, two tables, and what keeps them; searches of before have no refit."""
    for table in ("best_models", "best_model_chunks"):
        make_room(op.get_bind(), table)
    # as SQL, which SQLite and PostgreSQL both have: Alembic would make the whole table anew for SQLite
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute(
        f"ALTER TABLE searches ADD COLUMN refit_of {'INTEGER' if is_sqlite else 'BIGINT'} "
        "CONSTRAINT fk_searches_refit_of REFERENCES searches (id)"
    )
    op.execute("ALTER TABLE searches ADD COLUMN model_key VARCHAR(72)")
    op.create_index(
        "uq_searches_refit_of",
        "searches",
        ["refit_of"],
        unique=True,
        postgresql_where=IS_REFIT,
        sqlite_where=IS_REFIT,
    )
    _make_tables()
    counts = ", ".join(
        f"(SELECT COUNT(*) FROM trials t WHERE t.search_id = s.id AND t.state = '{state}') AS {state}"  # noqa: S608 - constants
        for state in COUNTED
    )
    _replace_view("best_trials", BEST_TRIALS)
    _replace_view(
        "search_progress",
        SEARCH_PROGRESS.format(counts=counts, seconds_running=SECONDS_RUNNING[op.get_bind().dialect.name]),
    )
    if is_sqlite:
        return
    op.alter_column(
        "searches",
        "refit_of",
        comment="the search whose best model its one trial fits; NULL: it is no refit",
    )
    op.alter_column(
        "searches",
        "model_key",
        comment="checks the signature of a refit's model: the public half of the workers' key",
    )
    for name, body in (("keep_trial", KEEP_TRIAL), ("keep_model", KEEP_MODEL)):
        _set_function(name, body)
    for table in ("best_models", "best_model_chunks"):
        op.execute(f"CREATE TRIGGER keep_model BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION keep_model()")


def _make_tables() -> None:
    op.create_table(
        "best_models",
        sa.Column("trial_id", ID, autoincrement=False, nullable=False, comment="the trial of the refit"),
        sa.Column("number", sa.Integer(), nullable=False, comment="the trial of the search whose params it has"),
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the content"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes"),
        sa.Column("signature", sa.String(length=128), nullable=False, comment="Ed25519, with the workers' key"),
        sa.Column("python_version", sa.String(length=32), nullable=False),
        sa.Column("tensorflow_version", sa.String(length=32), nullable=True),
        sa.Column("keras_version", sa.String(length=32), nullable=True),
        sa.Column("scikit_learn_version", sa.String(length=32), nullable=False),
        sa.Column("gridfleet_version", sa.String(length=32), nullable=False),
        sa.CheckConstraint("number >= 0 AND size > 0", name=op.f("ck_best_models_sizes")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_best_models_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_best_models")),
    )
    op.create_table(
        "best_model_chunks",
        sa.Column("trial_id", ID, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["best_models.trial_id"], name=op.f("fk_best_model_chunks_trial_id")),
        sa.PrimaryKeyConstraint("trial_id", "position", name=op.f("pk_best_model_chunks")),
    )


def _replace_view(name: str, query: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
    else:  # with its rights, and with what others made of it
        op.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")


def _set_function(name: str, body: str) -> None:
    dialect = op.get_bind().dialect
    schema = dialect.identifier_preparer.quote(dialect.default_schema_name or "public")
    op.execute(
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
        # pg_temp last: it would be looked through first, and whoever may make temporary tables could replace these
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${body}$$"
    )
