"""A search names the source of the script's own modules."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; searches of before are signed without it, so that none of their trials starts any more."""
    # as SQL, which SQLite and PostgreSQL both have: Alembic would make the whole table anew for SQLite
    op.execute(
        "ALTER TABLE searches ADD COLUMN sources_digest VARCHAR(64) "
        "CONSTRAINT fk_searches_sources_digest REFERENCES payloads (digest)"
    )
    if op.get_bind().dialect.name == "postgresql":  # SQLite has no comments
        op.alter_column("searches", "sources_digest", comment="the script's own modules; NULL: it has none")
