"""Run inside a worker: what its database role and broker user are refused, and that it can't sign."""

import psycopg
import redis

from gridfleet.storage.settings import load_settings

settings = load_settings()
if settings.secret_key is not None or settings.public_key is None:
    raise SystemExit("the worker has not the public key only")
FORBIDDEN_SQL = [
    "DELETE FROM trials",
    "TRUNCATE trials",
    "UPDATE payload_chunks SET content = content",
    "INSERT INTO payloads SELECT * FROM payloads",
    "UPDATE alembic_version SET version_num = 'x'",
    "UPDATE trials SET params = params",
    "UPDATE searches SET evaluation_digest = evaluation_digest",
    "CREATE TABLE written (a int)",
    "DROP TABLE trials",
    "COPY trials TO PROGRAM 'cat'",
]
FORBIDDEN_COMMANDS = ["FLUSHALL", "CONFIG GET maxmemory", "KEYS *", "EVAL 1 0", "GET other", "ACL LIST", "MODULE LIST"]

url = settings.database().set(drivername="postgresql").render_as_string(hide_password=False)
for statement in FORBIDDEN_SQL:
    with psycopg.connect(url) as connection:
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            connection.rollback()
        else:
            raise SystemExit(f"the worker's role may: {statement}")

broker = redis.Redis.from_url(settings.broker())
broker.ping()
for command in FORBIDDEN_COMMANDS:
    try:
        broker.execute_command(*command.split())
    except redis.exceptions.NoPermissionError:
        continue
    raise SystemExit(f"the broker's user may: {command}")
