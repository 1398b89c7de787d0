"""Serves the live page to a browser on this machine: three addresses, to be read alone.

A page from elsewhere can't ask: its browser names the host that it believes to talk to, and a name that isn't this
machine's is refused (DNS rebinding); answers go to pages of the same origin alone.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any

from pipelines.live.state import Watched
from pipelines.report import html
from pipelines.secrets import without_secrets
from sharding.errors import RequestError

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
REFRESH_S = 2.0
"""How often a page asks."""

_PATIENCE_S = 30.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """Serves one output; `serve_forever` in a thread of its own, `shutdown` to end it.

    Args:
        output: the run's output folder.
        host: the address to listen on.
        port: 0 for a free one.

    Raises:
        RequestError: the address can't be listened on.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, output: str, host: str = LOOPBACK, port: int = 0) -> None:
        self.watched = Watched(output)
        self.host = host
        self.page = _page(output)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise RequestError(
                f"watch: can't listen on {host} port {port}: {error.strerror or error}; name another with --port"
            ) from error

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def is_named(self, host: str) -> bool:
        """Whether a Host header names this machine: by an address, as localhost, or as it was told to listen.

        A name of somebody else's that leads here is refused. Addresses can't be rebound.
        """
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _PATIENCE_S
    server_version = "thoughtmill"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, the state, or the figures."""
        if not self.server.is_named(self.headers.get("Host", "")):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"this host is not served here\n", "text/plain")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, self.server.page, "text/html")
        elif self.path == "/state.json":
            self._answer_json(self.server.watched.state())
        elif self.path == "/figures.json":
            self._answer_json(self.server.watched.figures())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is no such page\n", "text/plain")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, b"this page is to be read\n", "text/plain")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def _answer_json(self, value: Any) -> None:
        self._answer(HTTPStatus.OK, json.dumps(value).encode(), "application/json")

    def _answer(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(data)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        if status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # what came with the request is not read
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """To the log and not onto the terminal."""
        logger.debug(format, *args)


def _page(output: str) -> bytes:
    clean = without_secrets(output)
    page = html.page(
        "live.html.j2",
        package="pipelines.live",
        scripts=("theme.js", "live.js"),
        asks=True,
        title=PurePosixPath(clean.rstrip("/")).name or clean,
        kind="watch",
        output=clean,
        refresh_ms=round(REFRESH_S * 1000),
    )
    return page.encode()
