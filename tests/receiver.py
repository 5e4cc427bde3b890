"""Somebody who is told of searches: a server of the test's own."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Receiver:
    """A server on loopback that keeps what was sent, and answers with a status."""

    server: http.server.HTTPServer
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    got: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it takes a POST."""
        return f"http://127.0.0.1:{self.server.server_port}/hook/a-token"


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Start one, on a free port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            one = receiver
            one.seen.append(self.headers)
            one.paths.append(self.path)
            one.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(one.status)
            for name, value in one.headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        receiver = Receiver(server)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()
