"""A server that speaks S3 over HTTP on the loopback and can refuse a share of its calls: for tests of stores."""

from __future__ import annotations

import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest

BUCKET = "mill"
SECRET = "planted-secret-key"

REFUSAL = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>ServiceUnavailable</Code>'
    b"<Message>Please reduce your request rate.</Message><RequestId>0</RequestId></Error>"
)


class FaultyS3:
    """moto's S3 behind a gate that answers some requests with 503.

    Attributes:
        url: the endpoint.
        fail_fraction: of the requests, from now on.
        refuse_next: how many of the next requests are refused, whatever the fraction.
        requests: how many of each method were answered by the store itself; PUTs that copy count as COPY.
        refused: how many were answered with 503.
    """

    def __init__(self, url: str, application: Callable[..., Iterable[bytes]], seed: int = 0) -> None:
        self.url = url
        self.fail_fraction = 0.0
        self.refuse_next = 0
        self.requests: Counter[str] = Counter()
        self.refused = 0
        self._application = application
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def empty(self) -> None:
        """Take everything away, and let every call pass again."""
        self.fail_fraction, self.refuse_next = 0.0, 0
        request = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request).close()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            refuse = self._random.random() < self.fail_fraction or self.refuse_next > 0
            if refuse:
                self.refused += 1
                self.refuse_next = max(0, self.refuse_next - 1)
            else:
                self.requests["COPY" if "HTTP_X_AMZ_COPY_SOURCE" in environ else environ["REQUEST_METHOD"]] += 1
        if refuse:
            if environ.get("CONTENT_LENGTH"):
                environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            elif environ.get("HTTP_TRANSFER_ENCODING"):
                environ["wsgi.input"].read()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(REFUSAL)))]
            start_response("503 Service Unavailable", headers)
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else REFUSAL]
        return self._application(environ, start_response)


@contextmanager
def serve_s3() -> Iterator[FaultyS3]:
    """The server with an empty bucket, and none of it left afterwards."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None: ...

    gate = FaultyS3("", DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=Quiet)
    gate.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="s3-server", daemon=True)
    thread.start()
    try:
        yield gate
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def lead_to(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment that leads every client in this process to the server, and forget those that are there."""
    import fsspec

    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(scope="module", name="server")
def server_fixture() -> Iterator[FaultyS3]:
    with serve_s3() as running:
        yield running


@pytest.fixture(name="store")
def store_fixture(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The server, empty but for a bucket, and an environment that leads to it: that is all the mill needs."""
    server.empty()
    lead_to(server, monkeypatch)
    fsspec.filesystem("s3").mkdir(BUCKET)
    yield server
    fsspec.get_filesystem_class("s3").clear_instance_cache()
