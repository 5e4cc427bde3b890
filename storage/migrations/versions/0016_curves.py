"""A learning curve is one row with an array; the view ``epochs`` shows its values as the rows of before."""

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


def upgrade() -> None:
    """Convert what was not converted before the migration began, and replace the table by a view."""
    connection = op.get_bind()
    convert_rest(connection)
    op.drop_table("epochs")
    op.execute(EPOCHS[connection.dialect.name])
    if connection.dialect.name == "postgresql":  # not before: it lets nobody write scores of a trial that has ended
        op.execute("CREATE TRIGGER keep_scores BEFORE INSERT ON curves FOR EACH ROW EXECUTE FUNCTION keep_scores()")
