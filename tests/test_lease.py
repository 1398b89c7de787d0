"""One run at a time writes to an output; one that is gone holds up nobody for long, whatever the clocks say."""

import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import lease as lease_module
from sharding.storage.lease import Lease, machine_identity, owner_is_alive, process_identity
from sharding.storage.output import Output


@pytest.fixture(params=["disk", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "out") if request.param == "disk" else "memory://lease-test/out"
    fs = fsspec.filesystem("memory")
    if fs.exists("/lease-test"):
        fs.rm("/lease-test", recursive=True)


def unknown(_: dict[str, Any]) -> None:
    """As if the owner were on another machine."""


def holder(output: str, **changes: Any) -> dict[str, Any]:
    owner = {"token": "another", "purpose": "augment", "host": "elsewhere", "pid": 7, "machine": "m", "process": "1"}
    storage.write_json(Output(output).lease, owner | changes)
    return owner | changes


def test_it_leaves_nothing_behind(output: str) -> None:
    with Lease(output, "score"):
        assert json.loads(storage.read_bytes(Output(output).lease))["purpose"] == "score"
    assert not storage.exists(Output(output).lease)


def test_a_live_process_is_not_disturbed(output: str) -> None:
    with Lease(output, "augment"), pytest.raises(RequestError, match=r"another run \(augment, process \d+ on .*end it"):
        Lease(output, "score").__enter__()
    with Lease(output, "score"):
        pass


def test_a_dead_process_is_followed_at_once(output: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    holder(output, pid=gone.pid, machine=machine_identity())
    began = time.monotonic()
    with Lease(output, "score", beat_s=0.01):
        assert time.monotonic() - began < 5
        assert json.loads(storage.read_bytes(Output(output).lease))["token"] != "another"


def test_a_process_with_the_number_of_a_dead_one_is_another() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = {"pid": child.pid, "process": process_identity(child.pid), "machine": machine_identity()}
    assert owner_is_alive(owner) is True
    assert owner_is_alive({**owner, "process": "12345"}) is False
    assert owner_is_alive({**owner, "machine": "another"}) is None
    child.kill()
    while process_identity(child.pid) is not None:  # until it is a zombie: nobody has waited for it
        time.sleep(0.01)
    assert owner_is_alive(owner) is False
    child.wait()


def test_another_machine_is_given_up_when_it_stands_still(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "owner_is_alive", unknown)
    holder(output)
    began = time.monotonic()
    with Lease(output, "score", beat_s=0.01, lease_s=0.3):
        assert time.monotonic() - began >= 0.3


def test_another_machine_is_left_alone_while_it_moves(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "owner_is_alive", unknown)
    owner = holder(output, beats=0)
    timer = threading.Timer(0.1, lambda: storage.write_json(Output(output).lease, {**owner, "beats": 1}))
    timer.start()
    with pytest.raises(RequestError, match="elsewhere"):
        Lease(output, "score", beat_s=0.01, lease_s=30).__enter__()
    timer.join()


def test_a_file_cut_short_holds_up_nobody(output: str) -> None:
    storage.write_bytes(Output(output).lease, b'{"tok')
    with Lease(output, "score", beat_s=0.01, lease_s=0.1):
        pass


def test_it_is_renewed_and_its_loss_is_told(output: str) -> None:
    with Lease(output, "score", beat_s=0.02) as lease:
        deadline = time.monotonic() + 10
        while json.loads(storage.read_bytes(Output(output).lease))["beats"] < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(storage.read_bytes(Output(output).lease))["beats"] >= 3
        lease.check()
        holder(output)
        while not lease._lost.is_set() and time.monotonic() < deadline:
            holder(output)  # the renewal may have just overwritten it
            time.sleep(0.02)
        with pytest.raises(MillError, match="took over"):
            lease.check()
    assert json.loads(storage.read_bytes(Output(output).lease))["token"] == "another"


def test_a_store_that_fails_for_a_while_does_not_end_the_renewal(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder does that is read-only for some seconds: no error of ours, and not from the call that matters."""
    with Lease(output, "score", beat_s=0.02) as lease:
        with monkeypatch.context() as broken:
            failed = threading.Event()

            def refuse(*_: object) -> None:
                failed.set()
                raise OSError(errno.EROFS, "Read-only file system")

            broken.setattr(storage, "write_bytes", refuse)
            assert failed.wait(10)
        before = json.loads(storage.read_bytes(Output(output).lease))["beats"]
        deadline = time.monotonic() + 10
        while json.loads(storage.read_bytes(Output(output).lease))["beats"] <= before:
            assert time.monotonic() < deadline, "nobody renews it any more"
            time.sleep(0.01)
        lease.check()


def test_a_renewal_that_has_ended_is_told(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "_renew", lambda self: None)
    with Lease(output, "score") as lease:
        assert lease._thread is not None
        lease._thread.join()
        with pytest.raises(MillError, match="no longer renewed"):
            lease.check()


@pytest.mark.parametrize("other", ["at work", "come and gone"])
def test_a_run_that_was_stopped_does_not_publish_over_another(output: str, other: str) -> None:
    """It wakes up when the other one has its lease, or has ended already: its own renewal has not come yet."""
    with Lease(output, "score", beat_s=3600) as lease:
        lease.check()
        if other == "at work":
            holder(output)
        else:
            storage.remove(Output(output).lease, output)
        with pytest.raises(MillError, match="took over"):
            lease.check()


def test_what_ends_a_run_is_not_hidden_by_its_lease(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(ZeroDivisionError), Lease(output, "score"):
        monkeypatch.setattr(storage, "remove", refuse)
        raise ZeroDivisionError


def test_of_many_at_once_one_gets_it(output: str) -> None:
    inside: list[int] = []
    refused: list[str] = []
    start = threading.Barrier(8)
    done = threading.Barrier(8)

    def run(number: int) -> None:
        start.wait()
        try:
            with Lease(output, "score"):
                inside.append(number)
                done.wait()
        except RequestError as error:
            refused.append(str(error))
            done.wait()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)
