"""One door to SQLite and PostgreSQL, and what to do when it is closed."""
