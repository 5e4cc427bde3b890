"""New tables whose names the views of searches may have already."""

from __future__ import annotations

import sqlalchemy as sa

from gridfleet.storage.errors import SchemaVersionError


def make_room(connection: sa.Connection, table: str) -> None:
    """Give the view of a search that is called as a new table is the name of one without a name.

    Parameters
    ----------
    connection : Connection
        An open writing transaction.
    table : str
        The new table's name.

    Raises
    ------
    SchemaVersionError
        If the view is none of a search.
    """
    views = (view for view in sa.inspect(connection).get_view_names() if view.lower() == table)
    view = next((view for view in views if view == table or connection.dialect.name == "sqlite"), None)
    if view is None:
        return
    of_search = sa.text("SELECT id FROM searches WHERE lower(name) = :name")
    search_id = connection.execute(of_search, {"name": table}).scalar()
    if search_id is None:
        raise SchemaVersionError(f"the view {view} is in the way of a new table; give it another name, and run again")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f'ALTER VIEW {table} RENAME TO "search-{search_id}"')
        return
    made = sa.text("SELECT sql FROM sqlite_master WHERE type = 'view' AND name = :view")
    query = connection.execute(made, {"view": view}).scalar_one().partition(" AS ")[2]
    connection.exec_driver_sql(f'DROP VIEW "{view}"')
    connection.exec_driver_sql(f'CREATE VIEW "search-{search_id}" AS {query}')
