"""Signatures are Ed25519's, twice as long: submitters sign, and workers only check."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COMMENTS = {
    "payloads": "Ed25519, of kind, digest and size",
    "searches": "Ed25519, of what a trial is evaluated by; NULL: of an older release",
}
#: By its kind: the row by which a process knew the fleet's key; the next submission writes one of the new form.
FORGET_KEY = "DELETE FROM payloads WHERE kind = 'key'"


def upgrade() -> None:
    """Make room for the signatures; those of before stay, and hold no more."""
    op.execute(FORGET_KEY)
    if op.get_bind().dialect.name == "sqlite":
        for table in COMMENTS:
            _make_anew(table)
        return
    for table, comment in COMMENTS.items():
        op.alter_column(table, "signature", type_=sa.String(128), comment=comment)


def _make_anew(table: str) -> None:
    """Make a table anew, for SQLite changes no type of a column (0004 says why not by a rename)."""
    connection = op.get_bind()
    op.execute("PRAGMA defer_foreign_keys = ON")  # other tables refer to it; until the commit
    definitions = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'table' DESC", (table,)
    ).scalars()
    made, *indexes = definitions.all()
    wider = made.replace("signature VARCHAR(64)", "signature VARCHAR(128)")
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE kept_rows AS SELECT * FROM {table}")  # noqa: S608 - a constant
    op.drop_table(table)
    for statement in (wider, *indexes):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(f"INSERT INTO {table} SELECT * FROM kept_rows")  # noqa: S608 - a constant
    connection.exec_driver_sql("DROP TABLE kept_rows")
