"""URLs of databases, brokers and receivers: read, completed, and shown without their secrets."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

#: Options of URLs of PostgreSQL and Redis that name files.
FILE_OPTIONS = (
    *("sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir", "passfile"),
    *("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"),
)


def with_absolute_paths(text: str) -> str:
    """Return a URL whose files are the same ones wherever a process goes."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        return text  # refused, with the reason, when it is used
    relative = {
        name: str(Path(value).absolute())
        for name, value in url.query.items()
        if name in FILE_OPTIONS and isinstance(value, str) and value != "system" and not Path(value).is_absolute()
    }
    moved = url.update_query_dict(relative) if relative else url
    file = url.database
    if url.get_backend_name() == "sqlite" and file and not file.startswith((":", "file:", "/")):
        moved = moved.set(database=str(Path(file).absolute()))
    return text if moved is url else moved.render_as_string(hide_password=False)


def parsed(text: str) -> URL:
    """Parse a URL; a password among its options goes to the place that is a password's.

    Raises
    ------
    ArgumentError, ValueError
        If it is none.
    """
    url = make_url(text)
    has_a_port = url.port is None or 1 <= url.port <= 65_535
    if not has_a_port or not text.isprintable():
        raise ValueError("there is no such port, or a character that can't be printed")
    password = url.query.get("password")
    if password is None:
        return url
    last = password if isinstance(password, str) else password[-1]
    return with_password(url.difference_update_query(["password"]), url.password or last)


def without_secrets(url: URL) -> str:
    """Return user, host, port and database of a URL: a password may stand in any other part."""
    place = {name: url.query[name] for name in ("host", "port") if name in url.query}
    database = url.database
    if database and "@" in database and url.get_backend_name() != "sqlite":
        database = "***"  # a password, from a URL in which a "/" stands before it
    shown = URL.create(url.drivername, url.username, None, url.host, url.port, database, place)
    return shown.render_as_string()


def with_password(url: URL, password: str) -> URL:
    """Return a URL with a password."""
    # SQLAlchemy leaves the password out of a URL that has no user, not even an empty one
    return url.set(username=url.username or "", password=password)


def shown_url(url: str | None) -> str | None:
    """Return what may be shown of a URL; stars, if it is none."""
    if url is None:
        return None
    try:
        return without_secrets(make_url(url))
    except (ArgumentError, ValueError):
        return "***"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address, and no other."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
