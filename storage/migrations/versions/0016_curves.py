"""A learning curve is one row with an array, which the view ``epochs`` shows; scores come before their trial ends."""

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
    if connection.dialect.name == "postgresql":  # not before: it lets nobody write scores of a trial that has ended
        op.execute("CREATE TRIGGER keep_scores BEFORE INSERT ON curves FOR EACH ROW EXECUTE FUNCTION keep_scores()")
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
