"""A store that fails for a moment is asked again; one that refuses for good gives one clear error."""

import errno
import importlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import retries
from sharding.storage.retries import TRIES, patiently

REMOTE = fsspec.filesystem("memory")
LOCAL = fsspec.filesystem("file")


class ClientError(Exception):
    """As the clients of stores have them: no OSError."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    return waits


def failing(error: Exception, times: int) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return call, calls


@pytest.mark.parametrize("error", [OSError(errno.EBUSY, "slow down"), ClientError("503"), TimeoutError()], ids=repr)
def test_what_passes_is_waited_for(error: Exception, no_waiting: list[float]) -> None:
    call, _ = failing(error, TRIES - 1)
    assert patiently("read", "s3://b/f", REMOTE, call) == "done"
    assert no_waiting == sorted(no_waiting) and 3 < sum(no_waiting) < 7


def test_what_does_not_pass_names_the_file() -> None:
    call, calls = failing(ClientError("no route"), 99)
    with pytest.raises(MillError, match=r"cannot read s3://b/f: no route") as caught:
        patiently("read", "s3://b/f", REMOTE, call)
    assert len(calls) == TRIES and isinstance(caught.value.__cause__, ClientError)


@pytest.mark.parametrize(
    ("error", "fs"),
    [
        (FileNotFoundError("gone"), REMOTE),
        (PermissionError("no"), REMOTE),
        (OSError(errno.ENOSPC, "full"), REMOTE),
        (OSError(errno.EIO, "broken"), LOCAL),
    ],
    ids=["absent", "forbidden", "full", "broken disk"],
)
def test_what_stays_is_asked_once(error: Exception, fs: fsspec.AbstractFileSystem) -> None:
    call, calls = failing(error, 99)
    with pytest.raises(MillError):
        patiently("read", "f", fs, call)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error", [TypeError("f() got 2"), AttributeError("no x"), KeyError("x"), UnboundLocalError("y")]
)
def test_a_mistake_in_the_code_is_not_tried_again_nor_taken_for_the_store_s(error: Exception) -> None:
    call, calls = failing(error, 99)
    with pytest.raises(type(error)):
        patiently("read", "s3://b/f", REMOTE, call)
    assert len(calls) == 1


def test_a_failure_is_not_taken_for_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(self: object, path: str, **_: object) -> None:
        raise ClientError("503")

    monkeypatch.setattr(type(REMOTE), "info", info)
    with pytest.raises(MillError, match="cannot look up"):
        storage.exists("memory://somewhere/MANIFEST.json")


def test_absence_is_no_failure(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert storage.exists(str(file))
    assert not storage.exists(str(tmp_path / "none"))
    assert not storage.exists(str(file / "below"))
    assert not storage.exists("memory://nowhere/none")


@pytest.mark.parametrize(
    ("url", "extra"),
    [("gs://b/f", "gcs"), ("gcs://b/f", "gcs"), ("az://b/f", "azure"), ("abfs://b/f", "azure"), ("s3://b/f", "s3")],
)
def test_a_missing_package_is_named_by_its_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    protocol = url.partition(":")[0]
    monkeypatch.delitem(registry._registry, protocol, raising=False)  # there already once a test has used it
    monkeypatch.setitem(registry.known_implementations, protocol, {"class": "no_such_package.X", "err": "install it"})
    with pytest.raises(RequestError, match=rf"{url}: no filesystem for .*pip install 'thoughtmill\[{extra}\]'"):
        storage.filesystem(url)


def test_the_hub_comes_with_the_package() -> None:
    fs, path = storage.filesystem("hf://datasets/owner/name/data")
    assert path == "datasets/owner/name/data" and type(fs).__name__ == "HfFileSystem"


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(RequestError, match=r"nonsense://x/y: no filesystem for nonsense://"):
        storage.filesystem("nonsense://x/y")


def test_a_temporary_file_that_stays_does_not_hide_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a store that became read-only both fail; what matters is what the file was to be."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ZeroDivisionError), storage.publish(str(tmp_path / "file")) as out:
        out.write(b"half")
        raise ZeroDivisionError
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(MillError, match=r"cannot write .*file: Read-only"):
        storage.write_bytes(str(tmp_path / "file"), b"whole")
    assert not (tmp_path / "file").exists()
