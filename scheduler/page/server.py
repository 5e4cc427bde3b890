"""The page's HTTP server."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

from gridfleet.storage.errors import SettingsError

#: Connections at once, of which readers of events keep theirs; more are told to come again.
MAX_CONNECTIONS = 1_000
#: Seconds that open requests get when the page is stopped.
STOP_S = 3


def listening(address: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Parameters
    ----------
    address : str
        Of this machine, as ``127.0.0.1``.
    port : int
        0: one that is free.

    Raises
    ------
    SettingsError
        If that is not to be had.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"the page can't listen at {address}:{port} ({error.strerror}); give --port another"
        ) from error
    return listener


class Server(uvicorn.Server):
    """Serves the page; requests are not logged, for an address may have the token."""

    def __init__(self, app: Starlette) -> None:
        self._changes = app.state.changes
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_config=None,
                server_header=False,
                ws="none",
                lifespan="on",
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=STOP_S,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams of events, which would go on for ever, and then the rest."""
        self._changes.close()
        await super().shutdown(sockets)
