"""Full disks, clocks that jump, ledger parts cut short: a clear error or none, and the same shards in the end."""

import contextlib
import random
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.run import mill
from pipelines.verify import verify
from sharding.errors import MillError
from sharding.storage import manifest
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import MadeLog, hashes, ledger_keys, repeated
from tests.chaos.test_kills import SLOW, finish


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Callable[[], None]]:
    """A disk of its own at `folder`; gives what makes it large. Where none may be mounted, files may not grow."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True) and None
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_kib * 64, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill(job: Job, folder: Path, sizes_kib: list[int], account: Account, made: MadeLog) -> None:
    """Run on a disk that is too small at one moment after the other, until it is large enough."""
    account.fault = "a full disk"
    stopped: list[str] = []
    for size_kib in sizes_kib:
        disk = folder / f"disk-{size_kib}"
        made.path.unlink(missing_ok=True)
        with small_disk(disk, size_kib) as grow:
            try:
                mill(job.config(disk))
            except MillError as error:
                account.injected += 1
                assert str(disk) in str(error), "the message names the file"
                assert not (disk / "out" / manifest.SUCCESS_NAME).exists()
                stopped.append(str(error).partition(":")[0].partition(" (")[0])
            grow()
            config = job.config(disk)
            calls, durable = len(made.calls()), set(ledger_keys(config))
            finish(job, config, account)
            account.lost += sum(call.partition(" ")[0] in durable for call in made.calls()[calls:])
            account.again += made.again()
            assert account.lost == 0, "what was durable was made again"
    assert set(stopped) & set(manifest.STAGES), stopped


@pytest.mark.slow
def test_a_full_disk(job: Job, tmp_path: Path, account: Account, made: MadeLog) -> None:
    fill(job, tmp_path, [32, 96], account, made)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_many_full_disks(job: Job, tmp_path: Path, account: Account, made: MadeLog) -> None:
    fill(job, tmp_path, list(range(8, 176, 8)), account, made)


class JumpingClock:
    """The wall clock of a machine that is set forth and back by up to two days, again and again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._time, self._time_ns = time.time, time.time_ns
        self._offset_s = 0.0
        self.jumps = 0

    def _jump(self) -> None:
        if self._random.random() < 0.05:
            self._offset_s = self._random.uniform(-172_800, 172_800)
            self.jumps += 1

    def time(self) -> float:
        self._jump()
        return self._time() + self._offset_s

    def time_ns(self) -> int:
        self._jump()
        return self._time_ns() + int(self._offset_s * 1e9)


def jump(job: Job, folder: Path, seed: int, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = JumpingClock(seed)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", clock.time)
        patched.setattr(time, "time_ns", clock.time_ns)
        done = mill(job.config(folder))
    account.fault = "a clock that jumps by up to two days"
    account.injected += clock.jumps
    assert all(finished.elapsed_s >= 0 for finished in done.values())
    finish(job, job.config(folder), account)


@pytest.mark.slow
def test_a_clock_that_jumps(
    job: Job, tmp_path: Path, account: Account, made: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump(job, tmp_path, 1, account, monkeypatch)
    account.again = made.again()
    assert account.again == 0
    # A run that is dated before the ledger it finds uses it all the same.
    day = 86_400
    real_s, real_ns = time.time, time.time_ns
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: real_s() - 30 * day)
        patched.setattr(time, "time_ns", lambda: real_ns() - 30 * day * 10**9)
        again = mill(job.config(tmp_path / "again", ledger={"path": str(tmp_path / "out" / "ledger")}))
    assert again["augment"].counts["generated"] == 0


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_many_clocks(job: Job, tmp_path: Path, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2, 22):
        jump(job, tmp_path / str(seed), seed, account, monkeypatch)


def cut_parts(job: Job, folder: Path, share: float, account: Account) -> None:
    rng = random.Random(share)
    ledger: dict[str, Any] = {"path": str(folder / "ledger"), "flush_rows": 4, "flush_seconds": 0.2}
    first = job.config(folder / "one", ledger=ledger, **SLOW)  # slow enough for many parts
    mill(first)
    parts = sorted((folder / "ledger").glob("part-*.arrow"))
    assert len(parts) >= 5
    damaged = rng.sample(parts, max(1, round(share * len(parts))))
    for part in damaged:
        data = part.read_bytes()
        part.write_bytes(data[: rng.randrange(len(data))])
    account.fault, account.injected = "a ledger part cut short", len(damaged)
    left = set(ledger_keys(first))
    assert len(left) < len(job.keys) and (left or share == 1)
    second = job.config(folder / "two", ledger=ledger)
    counts = mill(second)["augment"].counts
    account.again = counts["generated"]
    assert counts["generated"] == len(job.keys - left), "what was cut off is made again, and nothing else"
    assert hashes(second) == job.expected
    assert set(ledger_keys(second)) == job.keys and repeated(second) == 0
    assert verify(second.output).problems == []


@pytest.mark.slow
def test_a_ledger_part_cut_short(job: Job, tmp_path: Path, account: Account) -> None:
    cut_parts(job, tmp_path, 0.1, account)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_many_ledger_parts_cut_short(job: Job, tmp_path: Path, account: Account, share: float) -> None:
    cut_parts(job, tmp_path, share, account)
