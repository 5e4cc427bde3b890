"""Tags, what ran, seeds; searches that are renamed, signed anew, or being deleted."""

import sqlalchemy as sa
from alembic import op

from gridfleet.storage.database.times import UtcDateTime
from gridfleet.storage.migrations.new_tables import make_room

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COLUMNS = {
    "searches": (
        sa.Column(
            "keep_curves",
            sa.Boolean(),
            nullable=False,
            server_default=sa.true(),
            comment="whether learning curves are stored",
        ),
        sa.Column("deleted_at", UtcDateTime(), comment="since when its rows are being removed"),
        sa.Column("git_commit", sa.Text(), comment="of the script's folder; NULL: it is in no repository"),
        sa.Column("git_dirty", sa.Boolean(), comment="whether files that git tracks were changed since"),
        sa.Column(
            "packages_digest",
            sa.String(length=64),
            comment="texts: the packages that were installed where it was submitted",
        ),
    ),
    "trials": (
        sa.Column(
            "seed",
            sa.BigInteger(),
            comment="set before split 0, of each further split one more; NULL: the estimator has its own",
        ),
        sa.Column("environment_digest", sa.String(length=64), comment="texts: on what it was evaluated"),
    ),
}

# as in 0017, but that who may remove scores may give a search another name, sign it anew, and begin to delete it once
# it has ended; the signature of its name and of all that it consists of is what workers go by
KEEP_SEARCH = """
BEGIN
  IF OLD.deleted_at IS NOT NULL AND NEW IS DISTINCT FROM OLD THEN
    RAISE integrity_constraint_violation USING MESSAGE = format('search %s is being deleted', OLD.id);
  END IF;
  IF has_table_privilege('split_scores', 'DELETE') AND (NEW.deleted_at IS NULL OR NEW.finished_at IS NOT NULL) THEN
    OLD.name := NEW.name;
    OLD.signature := NEW.signature;
    OLD.model_key := NEW.model_key;
    OLD.deleted_at := NEW.deleted_at;
  END IF;
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


def upgrade() -> None:
    """Add columns and tables; what is there stays, and nobody knows of it what ran."""
    for table, columns in COLUMNS.items():
        for column in columns:
            op.add_column(table, column)
    for table in ("tags", "texts", "sources"):
        make_room(op.get_bind(), table)
    op.create_table(
        "tags",
        sa.Column("search_id", ID, autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_tags_search_id")),
        sa.PrimaryKeyConstraint("search_id", "key", name=op.f("pk_tags")),
    )
    op.create_table(
        "texts",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the content in UTF-8"),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_texts")),
    )
    op.create_table(
        "sources",
        sa.Column("search_id", ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="of the function or class"),
        sa.Column(
            "digest", sa.String(length=64), nullable=True, comment="texts: its source; NULL: there is none to be had"
        ),
        sa.ForeignKeyConstraint(["digest"], ["texts.digest"], name=op.f("fk_sources_digest")),
        sa.ForeignKeyConstraint(["search_id"], ["searches.id"], name=op.f("fk_sources_search_id")),
        sa.PrimaryKeyConstraint("search_id", "name", name=op.f("pk_sources")),
    )
    dialect = op.get_bind().dialect
    if dialect.name != "postgresql":
        return
    schema = dialect.identifier_preparer.quote(dialect.default_schema_name or "public")
    op.execute(
        "CREATE OR REPLACE FUNCTION keep_search() RETURNS trigger LANGUAGE plpgsql "
        f"SET search_path = pg_catalog, {schema}, pg_temp AS $${KEEP_SEARCH}$$"
    )
