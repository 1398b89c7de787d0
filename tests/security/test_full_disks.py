"""Disks that are full or lose power, and what killed runs leave: an error at once, nothing half-made, no litter."""

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError
from sharding.storage.lease import Lease
from sharding.storage.output import Output
from tests.chaos.test_faults import small_disk


@contextmanager
def no_room() -> Iterator[None]:
    """No file may hold a byte: writes fail as on a full disk, names can still be made."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_lease_without_room_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    output, began = str(tmp_path / "out"), time.monotonic()
    with no_room(), pytest.raises(MillError, match=r"cannot create .*RUNNING.json: File too large"):
        Lease(output, "score").__enter__()
    assert time.monotonic() - began < 5
    assert not Path(Output(output).lease).exists(), "an empty lease would be waited for"
    with Lease(output, "score"):
        pass


@pytest.mark.parametrize("content", [b"", b"{"])
def test_an_empty_lease_of_a_run_that_was_killed_is_followed_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    storage.write_bytes(Output(str(tmp_path)).lease, content)
    with Lease(str(tmp_path), "score", beat_s=0.01, lease_s=0.1):
        assert "is held; looking for a sign of life" in caplog.text


@pytest.mark.parametrize("size_kib", [4, 8])
def test_a_stage_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    tmp_path: Path, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], size_kib: int
) -> None:
    tree = rehearsal_config(write_jsonl([{"id": "a", "text": "some text " * 200}]))
    with small_disk(tmp_path / "disk", size_kib) as grow:
        config = from_mapping(tree | {"output": str(tmp_path / "disk" / "out")})
        began = time.monotonic()
        with pytest.raises(MillError, match=str(tmp_path / "disk")) as failed:
            mill(config, stages=["score"])
        assert (
            time.monotonic() - began < 30 and any(told in str(failed.value) for told in ("No space", "0 kB free"))
        ) or "too large" in str(failed.value)
        assert not Path(Output(config.output).lease).exists()
        grow()
        mill(config, stages=["score"])


def test_a_file_is_said_to_be_there_when_its_folders_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    target = tmp_path / "new" / "er" / "file"
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), target.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    storage.write_bytes(str(target), b"x")
    assert [name for name, there in synced if there] == [str(target.parent), str(tmp_path / "new"), str(tmp_path)]
    assert not synced[0][1] and ".tmp" in synced[0][0], "its bytes come first"
    synced.clear()
    storage.write_bytes(str(target), b"y")
    assert len(synced) == 2


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_syncs_no_folders_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    def refused(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    if fails:
        with pytest.raises(MillError, match=r"cannot write .*file: Input/output error"):
            storage.write_bytes(str(tmp_path / "file"), b"x")
    else:
        storage.write_bytes(str(tmp_path / "file"), b"x")


def test_what_killed_runs_left_half_written_goes_and_nothing_else(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    tree = rehearsal_config(write_jsonl([{"id": "a", "text": "some text " * 200}]))
    config = from_mapping(tree)
    at, old = Output(config.output), time.time() - 2 * 3600
    left, kept = [], []
    for folder in (*at.folders, config.ledger_url):
        for name, age, of in (
            (f".report.html.{'0' * 32}.tmp", old, left),
            (f".report.html.{'1' * 32}.tmp", time.time(), kept),  # somebody may be writing it
            (".mine.tmp", old, kept),
            ("mine.tmp", old, kept),
        ):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
            os.utime(path, (age, age))
            of.append(path)
    mill(config, stages=["score", "augment"])
    assert not [path for path in left if path.exists()]
    alive = Path(at.alive)  # is cleared when nobody generates any more
    assert not [path for path in kept if not path.exists() and path.parent != alive]
