"""Rows straight from an object store: the same as from a disk, in bounded room, and never a wrong one."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.records.types import FileEntry
from sharding.shards import cache as cache_module
from sharding.shards.cache import ShardCache
from sharding.shards.dataset import PackedDataset, collate
from sharding.shards.grain_sources import DocumentSource, RowSource
from sharding.shards.sampler import PackedSampler
from sharding.storage import manifest, retries
from tests.packed_output import PackedOutput, write_output
from tests.s3_server import BUCKET, FaultyS3, server_fixture, store_fixture  # noqa: F401

pytest.importorskip("moto", reason="moto's server is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

SHARDS = 3


@pytest.fixture
def remote(store: FaultyS3) -> PackedOutput:
    return write_output(f"s3://{BUCKET}/out", train_shards=SHARDS)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache", prefetch_shards=0)


def ids(rows: Any) -> list[bytes]:
    return [row["input_ids"].astype(np.int64).tobytes() for row in rows]


def stored(output: PackedOutput) -> list[bytes]:
    return [row.input_ids.astype(np.int64).tobytes() for row in output.rows("train")]


def shards_of(output: PackedOutput) -> list[Any]:
    return manifest.require(output.url, "pack").files["shards"][:SHARDS]


def in_cache(cache: ShardCache) -> set[str]:
    return {path.name for path in cache.place.iterdir() if not path.name.startswith(".lock")}


def change(output: PackedOutput, shard: int, how: Callable[[bytearray], bytes]) -> str:
    """Change a shard in the store; gives its URL."""
    url = storage.join(output.url, shards_of(output)[shard].name)
    storage.write_bytes(url, how(bytearray(storage.read_bytes(url))))
    return url


def test_what_ends_a_fetch_is_not_hidden_by_what_it_leaves(cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = FileEntry(name="data/train-00000-of-00001.arrow", size_bytes=1, sha256="0" * 64, rows=1)
    cache.place.mkdir(parents=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(ZeroDivisionError), cache._begun(entry) as begun:
        monkeypatch.setattr(Path, "unlink", refuse)
        raise ZeroDivisionError
    with begun.open("rb") as left:  # nobody holds it: the next one that needs room may remove it
        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_rows_and_documents_are_those_of_a_disk(remote: PackedOutput, cache: ShardCache, tmp_path: Path) -> None:
    local = write_output(str(tmp_path / "local"), train_shards=SHARDS)
    assert ids(PackedDataset(remote.url, cache=cache)) == stored(local)
    for kind in (RowSource, DocumentSource):
        here, there = kind(local.url), kind(remote.url, cache=cache)
        assert len(here) == len(there)
        for number in range(0, len(here), 7):
            assert all(np.array_equal(here[number][name], there[number][name]) for name in here[number])
    labelled = PackedDataset(remote.url, loss_mask="thoughts_only", labelled_only=True, cache=cache)
    assert ids(labelled) == ids(PackedDataset(local.url, loss_mask="thoughts_only", labelled_only=True))


def test_workers_of_a_loader_share_what_is_fetched(remote: PackedOutput, store: FaultyS3, tmp_path: Path) -> None:
    """Two forked processes and the main one, with a thread that reads ahead: each shard crosses the wire once."""
    cache = ShardCache(folder=tmp_path / "cache")
    dataset = PackedDataset(remote.url, cache=cache)
    loader = DataLoader(dataset, 8, sampler=PackedSampler(dataset), num_workers=2, collate_fn=collate)
    before = store.requests["GET"]
    for _ in range(2):
        read = [row.numpy().tobytes() for batch in loader for row in batch["input_ids"]]
        assert sorted(read) == sorted(stored(remote))
    assert store.requests["GET"] - before == SHARDS


def test_many_readers_fetch_each_shard_once(remote: PackedOutput, store: FaultyS3, cache: ShardCache) -> None:
    readers = [PackedDataset(remote.url, cache=cache) for _ in range(8)]
    before = store.requests["GET"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ids, readers))
    assert found == [stored(remote)] * 8
    assert store.requests["GET"] - before == SHARDS


def test_the_next_shard_of_the_order_is_fetched_ahead(remote: PackedOutput, tmp_path: Path) -> None:
    for number, first_row in enumerate((in_order_of_the_shards, as_a_sampler_says, as_grain_reads)):
        cache = ShardCache(folder=tmp_path / str(number), prefetch_shards=1)
        await_file(cache.path(first_row(PackedDataset(remote.url, cache=cache), remote, cache)))


def test_what_one_fetches_ahead_another_does_not_wait_for(
    remote: PackedOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the next shard is under way elsewhere, a reader fetches the one after it."""
    monkeypatch.setattr(cache_module, "_LOCKS", 1 << 32)  # shards of these tests mustn't share a lock by chance
    cache = ShardCache(folder=tmp_path / "cache", prefetch_shards=2)
    slow, other = shards_of(remote)[:2]
    begun, go_on = threading.Event(), threading.Event()
    kind = type(fsspec.filesystem("s3"))
    whole = kind._get_file

    async def held(self: Any, remote_path: str, *args: Any, **kwargs: Any) -> None:
        if remote_path.endswith(slow.name):
            begun.set()
            while not go_on.is_set():
                await asyncio.sleep(0.01)
        await whole(self, remote_path, *args, **kwargs)

    monkeypatch.setattr(kind, "_get_file", held)
    kind.clear_instance_cache()
    dataset = PackedDataset(remote.url, cache=cache)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.fetch, storage.join(remote.url, slow.name), slow)
        try:
            assert begun.wait(20)
            dataset.read_ahead([0, 1])
            await_file(cache.path(other))
            assert not cache.path(slow).exists()
        finally:
            go_on.set()
        assert first.result().size == slow.size_bytes


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, "the shard wasn't fetched before it was asked for"
        time.sleep(0.01)


def in_order_of_the_shards(dataset: PackedDataset, output: PackedOutput, cache: ShardCache) -> Any:
    dataset[0], dataset[len(output.shards["train"][0])]
    return shards_of(output)[2]


def as_a_sampler_says(dataset: PackedDataset, output: PackedOutput, cache: ShardCache) -> Any:
    next(iter(PackedSampler(dataset)))
    return next_shard(output, cache)


def as_grain_reads(dataset: PackedDataset, output: PackedOutput, cache: ShardCache) -> Any:
    RowSource(output.url, seed=0, cache=cache)[0]
    return next_shard(output, cache)


def next_shard(output: PackedOutput, cache: ShardCache) -> Any:
    order = list(PackedSampler(PackedDataset(output.url, cache=ShardCache(folder=cache.place / "other"))))
    sizes = [len(shard) for shard in output.shards["train"]]
    ends = list(itertools.accumulate(sizes))
    in_turn = list(dict.fromkeys(next(n for n, end in enumerate(ends) if row < end) for row in order))
    return shards_of(output)[in_turn[1]]


# --- the bound --------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes(remote: PackedOutput, tmp_path: Path) -> None:
    entries = shards_of(remote)
    room = max(entry.size_bytes for entry in entries) * 2
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=room, prefetch_shards=0)
    urls = [storage.join(remote.url, entry.name) for entry in entries]
    for shard in (0, 1, 0, 2):
        assert cache.buffer(urls[shard], entries[shard]).size == entries[shard].size_bytes
        assert sum((cache.place / name).stat().st_size for name in in_cache(cache)) <= room
    assert in_cache(cache) == {f"{entries[shard].sha256}.arrow" for shard in (0, 2)}


def test_a_mapped_shard_may_go_while_it_is_read(remote: PackedOutput, tmp_path: Path) -> None:
    """Room for one shard, and two datasets that read apart: each still has its own."""
    room = max(entry.size_bytes for entry in shards_of(remote))
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=room)
    one, other = (iter(PackedDataset(remote.url, cache=cache)) for _ in range(2))
    first = next(one)
    assert ids([first, *itertools.chain.from_iterable(zip(one, other, strict=False)), *other])
    assert ids(PackedDataset(remote.url, cache=cache)) == stored(remote)


def test_what_is_being_fetched_counts(remote: PackedOutput, tmp_path: Path) -> None:
    """Else eight readers that begin at once would take eight times the room."""
    entries = shards_of(remote)
    room = max(entry.size_bytes for entry in entries)
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=room, prefetch_shards=0)
    urls = [storage.join(remote.url, entry.name) for entry in entries]
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            sizes = []
            for path in tmp_path.glob("cache/*"):
                with_size = path if path.suffix == ".arrow" or path.suffix == ".tmp" else None
                if with_size is not None:
                    try:
                        sizes.append(path.stat().st_size)
                    except FileNotFoundError:
                        continue
            most = max(most, sum(sizes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(cache.buffer, urls, entries))
    done.set()
    watcher.join()
    assert most <= 2 * room  # a listing and what it looks at are not of one moment
    assert len(in_cache(cache)) == 1


def test_a_cache_without_room_for_a_shard_is_refused(remote: PackedOutput, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cache: max_bytes is 100, and a shard of this corpus has [0-9,]+"):
        PackedDataset(remote.url, cache=ShardCache(folder=tmp_path, max_bytes=100))
    with pytest.raises(RequestError, match="cache: max_bytes is 0"):
        ShardCache(max_bytes=0)
    with pytest.raises(RequestError, match="cache: prefetch_shards is -1"):
        ShardCache(prefetch_shards=-1)
    assert ShardCache(max_bytes=500, prefetch_shards=9).prefetched(100) == 3
    assert ShardCache(max_bytes=150, prefetch_shards=9).prefetched(100) == 0


# --- what is half there, or wrong -------------------------------------------------------------------------------------


def test_what_a_killed_reader_left_is_not_taken_for_whole(remote: PackedOutput, cache: ShardCache) -> None:
    entry = shards_of(remote)[0]
    cache.place.mkdir()
    left = cache.place / f".{entry.sha256}.{entry.size_bytes}.{'0' * 32}.tmp"
    left.write_bytes(b"the half of it")
    alive = cache.place / f".{entry.sha256}.{entry.size_bytes}.{'1' * 32}.tmp"
    alive.write_bytes(b"another process writes this")
    cache.path(entry).write_bytes(b"cut short")
    other = cache.place / "a file of somebody else"
    other.write_bytes(b"stays")
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ids(PackedDataset(remote.url, cache=cache)) == stored(remote)
    assert not left.exists() and alive.exists() and other.exists()


def test_a_copy_that_was_damaged_here_is_fetched_again(remote: PackedOutput, cache: ShardCache) -> None:
    assert ids(PackedDataset(remote.url, cache=cache)) == stored(remote)
    path = cache.path(shards_of(remote)[1])
    wrong = bytearray(path.read_bytes())
    wrong[len(wrong) // 2] ^= 1
    path.write_bytes(wrong)
    os.utime(path, ns=(0, 1))
    assert ids(PackedDataset(remote.url, cache=cache)) == stored(remote)


def test_a_wrong_byte_in_the_store_names_shard_and_batch(remote: PackedOutput, cache: ShardCache) -> None:
    batches = shards_of(remote)[1].batches
    assert len(batches) > 2

    def flip(data: bytearray) -> bytes:
        data[(batches[1][0] + batches[2][0]) // 2] ^= 1
        return bytes(data)

    url = change(remote, 1, flip)
    dataset = PackedDataset(remote.url, cache=cache)
    whole = len(remote.shards["train"][0])
    assert ids(dataset[row] for row in range(whole)) == stored(remote)[:whole]
    with pytest.raises(MillError, match=rf"{url}: .*not those of its manifest, in record batch 2 of {len(batches)}"):
        dataset[whole]
    assert cache.path(shards_of(remote)[1]).name not in in_cache(cache)
    assert not [name for name in in_cache(cache) if name.endswith(".tmp")]


def test_a_shard_that_is_cut_replaced_or_gone_is_an_error(remote: PackedOutput, cache: ShardCache) -> None:
    kept = bytes(storage.read_bytes(change(remote, 0, bytes)))
    url = change(remote, 0, lambda data: bytes(data[: len(data) // 2]))
    with pytest.raises(MillError, match=rf"{url}: as it was fetched, [0-9,]+ bytes, its manifest says [0-9,]+"):
        PackedDataset(remote.url, cache=cache)[0]
    change(remote, 0, lambda _: b"")
    with pytest.raises(MillError, match=rf"{url}: as it was fetched, 0 bytes"):
        PackedDataset(remote.url, cache=cache)[0]
    other = storage.read_bytes(storage.join(remote.url, shards_of(remote)[1].name))
    change(remote, 0, lambda _: other)
    with pytest.raises(MillError, match=rf"{url}: as it was fetched, .*its manifest.*another corpus is in its place"):
        PackedDataset(remote.url, cache=cache)[0]
    storage.remove(url, remote.url)
    with pytest.raises(MillError, match=rf"cannot fetch {url} to {cache.place}: "):
        PackedDataset(remote.url, cache=cache)[0]
    storage.write_bytes(url, kept)
    assert ids(PackedDataset(remote.url, cache=cache)) == stored(remote)


def test_a_store_that_refuses_for_a_while_is_asked_again(
    remote: PackedOutput, store: FaultyS3, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    dataset = PackedDataset(remote.url, cache=cache)
    before = store.refused
    store.refuse_next = 3
    assert ids(dataset) == stored(remote)
    assert store.refused == before + 3


def test_a_wire_that_breaks_once_is_no_damage(
    remote: PackedOutput, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer that comes out short is fetched once more before the store is blamed."""
    kind = type(fsspec.filesystem("s3"))
    whole, cut = kind._get_file, iter([True])

    async def short(self: Any, remote_path: str, local: str, *args: Any, **kwargs: Any) -> None:
        await whole(self, remote_path, local, *args, **kwargs)
        if next(cut, False):
            Path(local).write_bytes(Path(local).read_bytes()[:100])

    monkeypatch.setattr(kind, "_get_file", short)
    kind.clear_instance_cache()
    assert ids(PackedDataset(remote.url, cache=cache)) == stored(remote)


def test_a_cache_that_cannot_be_written_is_an_error(remote: PackedOutput, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MillError, match=rf"cannot keep s3://.*arrow in {tmp_path}/file/cache: Not a directory"):
        PackedDataset(remote.url, cache=ShardCache(folder=tmp_path / "file" / "cache"))[0]


# --- checksums of batches ---------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Iterator[PackedOutput]:
    yield write_output(str(tmp_path / "local"), train_shards=SHARDS)
    shutil.rmtree(tmp_path / "local")


def test_the_manifest_has_the_batches_of_every_shard(local: PackedOutput) -> None:
    for entry in shards_of(local):
        data = Path(local.url, entry.name).read_bytes()
        messages = list(pa.ipc.MessageReader.open_stream(data))[1:]
        assert len(messages) == len(entry.batches) > 1
        start = 0
        for (end, crc32), message in zip(entry.batches, messages, strict=True):
            assert zlib.crc32(data[start:end]) == crc32
            assert message.body.to_pybytes() in data[start:end]
            start = end


def test_a_byte_that_changes_under_an_open_shard_is_seen(local: PackedOutput) -> None:
    """The file was recognised when it was opened; what is decoded later must still be that."""
    dataset = PackedDataset(local.url)
    dataset[0]
    entry = shards_of(local)[0]
    with Path(local.url, entry.name).open("r+b") as file:
        file.seek((entry.batches[-2][0] + entry.batches[-1][0]) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    last = len(local.shards["train"][0]) - 1
    with pytest.raises(MillError, match=rf"{entry.name}: record batch {len(entry.batches) - 1} is not the one"):
        dataset[last]


def test_a_shard_of_a_manifest_without_batches_is_read(local: PackedOutput) -> None:
    """As versions before this one wrote them."""
    path = Path(local.url, manifest.MANIFEST_NAME)
    said = path.read_text(encoding="utf-8")
    assert '"batches": []' not in said
    tree = json.loads(said)
    for entry in tree["files"]["shards"]:
        del entry["batches"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    assert ids(PackedDataset(local.url)) == stored(local)
