"""Alembic's entry: runs the migrations on the connection that `upgrade` hands over."""

from alembic import context

from gridfleet.storage.schema import Base

# Alembic's SQLite dialect claims that DDL is not transactional; with our own BEGIN IMMEDIATE it is
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
