"""Handlers of loopback servers that know which connections are open, so that a server can cut them."""

from __future__ import annotations

import http.server
import socket
import threading
from contextlib import suppress


def handler_of(sockets: set[socket.socket], lock: threading.Lock) -> type[http.server.BaseHTTPRequestHandler]:
    """A class of handlers that keep connections, and keep `sockets` those that are open."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or answers of two writes take 40 ms

        def setup(self) -> None:
            super().setup()
            with lock:
                sockets.add(self.connection)

        def finish(self) -> None:
            with lock:
                sockets.discard(self.connection)
            with suppress(OSError):
                super().finish()

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

    return Handler
