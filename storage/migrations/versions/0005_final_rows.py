"""The digest of a payload is hexadecimal; in PostgreSQL what is final stays as it is, whoever writes."""

import sqlalchemy as sa
from alembic import op

import gridfleet.storage.database.times

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

#: Workers name files by it. All other tables refer to a payload by a foreign key, so the CHECK is theirs too.
DIGEST = "length(digest) = 64 AND ltrim(digest, '0123456789abcdef') = ''"

KEEP_SEARCH = """
BEGIN
  IF OLD.finished_at IS NOT NULL AND NEW IS DISTINCT FROM OLD THEN
    -- what retry-failed does
    IF NOT (OLD.state = 'completed' AND NEW.state = 'running' AND NEW.finished_at IS NULL) THEN
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
  -- known only when all other rows of a result are written
  OLD.record_time := COALESCE(OLD.record_time, NEW.record_time);
  IF NEW IS DISTINCT FROM OLD THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is %s and changes no more', OLD.id, OLD.state);
  END IF;
  RETURN NEW;
END
"""
KEEP_ATTEMPT = """
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT EXISTS (SELECT FROM trials WHERE id = NEW.trial_id AND attempt = NEW.attempt AND token = NEW.token) THEN
      RAISE integrity_constraint_violation
        USING MESSAGE = format('attempt %s at trial %s is not the one that runs', NEW.attempt, NEW.trial_id);
    END IF;
  ELSIF OLD.ended_at IS NOT NULL AND NEW IS DISTINCT FROM OLD THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('attempt %s at trial %s has ended and changes no more', OLD.attempt, OLD.trial_id);
  END IF;
  RETURN NEW;
END
"""
# a trial is recorded in this order: its final state, its scores, the end of its attempt
KEEP_SCORES = """
BEGIN
  IF NOT EXISTS (
    SELECT FROM trials JOIN attempts ON trial_id = id AND attempts.attempt = trials.attempt
    WHERE id = NEW.trial_id AND state IN ('completed', 'failed', 'pruned') AND ended_at IS NULL
  ) THEN
    RAISE integrity_constraint_violation
      USING MESSAGE = format('trial %s is not being recorded: it gets no scores', NEW.trial_id);
  END IF;
  RETURN NEW;
END
"""


def upgrade() -> None:
    """Add a CHECK and, in PostgreSQL, triggers; every row stays as it is."""
    if op.get_bind().dialect.name == "sqlite":
        # no triggers: SQLite has no roles, and who writes its file can drop them
        _make_payloads_anew()
        return
    op.create_check_constraint(op.f("ck_payloads_digest"), "payloads", DIGEST)
    for function, body, triggers in (
        ("keep_search", KEEP_SEARCH, {"searches": "UPDATE"}),
        ("keep_trial", KEEP_TRIAL, {"trials": "UPDATE"}),
        ("keep_attempt", KEEP_ATTEMPT, {"attempts": "INSERT OR UPDATE"}),
        ("keep_scores", KEEP_SCORES, {"split_scores": "INSERT", "epochs": "INSERT"}),
    ):
        _make_function(function, body)
        for table, events in triggers.items():
            op.execute(
                f"CREATE TRIGGER {function} BEFORE {events} ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"
            )


def _make_function(name: str, body: str) -> None:
    dialect = op.get_bind().dialect
    schema = dialect.identifier_preparer.quote(dialect.default_schema_name or "public")
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
        # pg_temp last: it would be looked through first, and whoever may make temporary tables could replace these
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${body}$$"
    )


def _make_payloads_anew() -> None:
    """Make the table anew, for SQLite adds a CHECK only together with its table (0004 says why not by a rename).

    Its rows are small: what is large are those of ``payload_chunks``, which stay.
    """
    op.execute("PRAGMA defer_foreign_keys = ON")  # other tables refer to it; until the commit
    op.execute("CREATE TEMPORARY TABLE kept_payloads AS SELECT * FROM payloads")
    op.drop_table("payloads")
    op.create_table(
        "payloads",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("signature", sa.String(length=64), nullable=False),
        sa.Column("created_at", gridfleet.storage.database.times.UtcDateTime(), nullable=False),
        sa.CheckConstraint(DIGEST, name=op.f("ck_payloads_digest")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_payloads")),
    )
    columns = "digest, kind, size, signature, created_at"
    op.execute(f"INSERT INTO payloads ({columns}) SELECT {columns} FROM kept_payloads")  # noqa: S608 - a constant
    op.execute("DROP TABLE kept_payloads")
