"""The whole job on S3, over HTTP: source, output, ledger; no rename, listings that lag, calls that fail."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from augment.ledger.parts import ledger_parts, part_keys, read_part, write_part
from augment.ledger.recent import FinishedSince
from pipelines import report
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping, to_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.output import Output
from tests.s3_server import BUCKET, SECRET, FaultyS3, lead_to, server_fixture, store_fixture  # noqa: F401
from tests.test_ledger import row

pytest.importorskip("moto", reason="moto's server is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

PARALLEL = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
DOCUMENTS = [{"id": f"doc-{i}", "text": f"Document {i} says {i * i}. " * (10 + 3 * i)} for i in range(20)]


Job = Callable[..., MillConfig]


@pytest.fixture
def job(rehearsal_config: Callable[..., dict[str, Any]]) -> Job:
    """Writes the documents and gives the config of a run, with all of it in one folder of any store."""

    def make(root: str, name: str = "out", **sections: Any) -> MillConfig:
        for part in range(2):
            lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS[part::2])
            storage.write_bytes(storage.join(root, "raw", f"{part}.jsonl"), lines.encode())
        return from_mapping(
            rehearsal_config(
                storage.join(root, "raw", "*.jsonl"),
                output=storage.join(root, name),
                ledger={"path": storage.join(root, "ledger"), "flush_rows": 8, "flush_seconds": 0.2},
                **sections,
            )
        )

    return make


def hashes(config: MillConfig) -> dict[str, str]:
    return {entry.name: entry.sha256 for entry in manifest.require(config.output, "pack").files["shards"]}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shards of the same job on a disk; filled by the first test that asks."""
    return {}


@pytest.fixture
def local(expected: dict[str, str], job: Job, tmp_path: Path) -> dict[str, str]:
    if not expected:
        config = job(str(tmp_path / "local"))
        mill(config)
        expected.update(hashes(config))
    return expected


@pytest.mark.slow
def test_the_same_shards_as_on_a_disk(store: FaultyS3, job: Job, local: dict[str, str]) -> None:
    config = job(f"s3://{BUCKET}/work")
    mill(config)
    assert hashes(config) == local
    assert verify(config.output, deep=True).problems == []
    assert not storage.exists(Output(config.output).lease)
    names = fsspec.filesystem("s3").find(f"{BUCKET}/work")
    assert not [name for name in names if name.endswith(".tmp")]
    # Nothing is moved: on an object store that is a copy, which readers may see half done.
    assert set(store.requests) <= {"GET", "HEAD", "PUT", "POST", "DELETE"} and store.requests["PUT"] > 10
    # Once more: done, and the ledger has everything for another output.
    again = job(f"s3://{BUCKET}/work", "again")
    assert mill(again)["augment"].counts["generated"] == 0
    assert hashes(again) == local


@pytest.mark.slow
def test_no_artefact_holds_a_key(
    store: FaultyS3,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not the store's, the hub's or a server's: no file, no column of one, no page, nothing that is printed."""
    for name in ("HF_TOKEN", "SPARE_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    spare = {"engine": "endpoint", "name": "spare", "urls": ["http://127.0.0.1:9"], "api_key_env": "SPARE_KEY"}
    pretend = {"engine": "rehearsal", "name": "pretend"}
    config = job(f"s3://{BUCKET}/secrets", models={"pretend": pretend, "spare": spare})
    with caplog.at_level(logging.DEBUG, "sharding"), caplog.at_level(logging.DEBUG, "augment"):
        mill(config)
    report.write(config.output)
    fs = fsspec.filesystem("s3")
    names = fs.find(f"{BUCKET}/secrets")
    assert {"MANIFEST.json", "README.md", "config.yaml", "croissant.json", "report.html"} <= {
        name.rpartition("/")[2] for name in names
    }
    for name in names:
        assert SECRET.encode() not in fs.cat_file(name), name
        if name.endswith(".arrow"):
            for batch in storage.read_batches(f"s3://{name}"):
                assert SECRET not in str(batch.to_pylist()), name
    assert SECRET not in "".join(capfd.readouterr()) + caplog.text


@pytest.mark.slow
def test_worker_processes_find_the_store(store: FaultyS3, job: Job, local: dict[str, str], tmp_path: Path) -> None:
    config = job(f"s3://{BUCKET}/workers")
    path = tmp_path / "mill.yaml"
    path.write_text(yaml.safe_dump(to_mapping(config)))
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", str(path), "--", *PARALLEL],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(config) == local


@pytest.mark.slow
def test_readers_go_by_manifests_not_by_listings(
    store: FaultyS3, job: Job, local: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(f"s3://{BUCKET}/listings")
    mill(config, stages=["score"])
    # What a listing shows that no manifest names isn't read; what it doesn't show is read all the same.
    folder = manifest.stage_url(config.output, "score")
    storage.write_bytes(storage.join(folder, "segments-09999.arrow"), b"left by a run that was killed")
    fs = fsspec.filesystem("s3")
    kind, listed = type(fs), []
    for name in ("_find", "_glob", "_ls"):
        method = getattr(kind, name)

        async def lagging(self: Any, path: str, *args: Any, _method: Any = method, **kwargs: Any) -> Any:
            listed.append(path)
            found = await _method(self, path, *args, **kwargs)
            return found if "/raw/" in path or "/ledger" in path else type(found)()

        monkeypatch.setattr(kind, name, lagging)
    kind.clear_instance_cache()  # an instance binds its methods when it is made
    mill(config, stages=["augment", "select", "pack"])
    # Heartbeats are listed too, which are news and no results; what killed runs left, to be removed; and whether later
    # deliveries were begun, beneath which nothing may be made again.
    swept = ("/stages", "/stages/augment", "/stages/select", "/data", "/index", "/deliveries")
    assert listed and not [path for path in listed if not path.endswith(("/ledger", "/alive", *swept))]
    assert hashes(config) == local


@pytest.mark.slow
def test_a_ledger_listing_that_lags_costs_generations_and_nothing_else(
    store: FaultyS3, job: Job, local: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"engine": "rehearsal", "name": "pretend", "engine_args": {"capacity": 4, "tokens_per_second": 1500}}
    first = job(f"s3://{BUCKET}/lag", models={"pretend": slow})
    bought = mill(first, stages=["score", "augment"])["augment"].counts["generated"]
    hidden = len(read_part(ledger_parts(first.ledger_url)[-1]) or [])
    kind = type(fsspec.filesystem("s3"))
    whole = kind.find  # by the beginning of names

    def lagging(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        found = whole(self, path, *args, **kwargs)
        return sorted(found)[:-1] if path.endswith("/ledger") else found

    with monkeypatch.context() as patched:
        patched.setattr(kind, "find", lagging)
        kind.clear_instance_cache()
        second = job(f"s3://{BUCKET}/lag", "second")
        counts = mill(second, stages=["score", "augment"])["augment"].counts
    assert counts["generated"] == hidden and 0 < hidden < bought
    kind.clear_instance_cache()
    for config in (first, second):
        mill(config)
        assert hashes(config) == local


def test_a_store_that_is_down_is_one_clear_error(
    server: FaultyS3, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lead_to(server, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("sharding.storage.retries.TRIES", 1)
    kind = fsspec.get_filesystem_class("s3")
    monkeypatch.setattr(kind, "retries", 1)
    kind.clear_instance_cache()
    local = job(str(tmp_path / "local"))
    config = from_mapping({**to_mapping(local), "output": f"s3://{BUCKET}/down"})
    with pytest.raises(MillError, match=f"s3://{BUCKET}/down"):
        mill(config)
    config = from_mapping({**to_mapping(local), "source": {"path": f"s3://{BUCKET}/raw/*.jsonl"}})
    with pytest.raises(MillError, match=f"s3://{BUCKET}/raw"):
        mill(config)
    kind.clear_instance_cache()


def test_a_bucket_that_is_not_there_is_named(store: FaultyS3, job: Job, tmp_path: Path) -> None:
    local = job(str(tmp_path / "local"))
    config = from_mapping({**to_mapping(local), "output": "s3://no-such-bucket/out"})
    with pytest.raises(MillError, match="no-such-bucket"):
        mill(config)
    config = from_mapping({**to_mapping(local), "source": {"path": "s3://no-such-bucket/raw/*.jsonl"}})
    with pytest.raises(RequestError, match="no-such-bucket"):
        mill(config)


def test_the_lease_is_a_conditional_write(store: FaultyS3) -> None:
    output = f"s3://{BUCKET}/leased"
    with Lease(output, "score"):
        with pytest.raises(RequestError, match="another run"):
            Lease(output, "score").__enter__()
        # Nobody looked before: the store itself refuses the second.
        other = Lease(output, "score")
        other._read = lambda: None  # type: ignore[method-assign]
        assert not other._create()
    with Lease(output, "score"):
        pass


def test_what_fails_half_way_leaves_nothing(store: FaultyS3) -> None:
    url = f"s3://{BUCKET}/half/file"
    with pytest.raises(ZeroDivisionError), storage.publish(url) as out:
        out.write(b"half")
        raise ZeroDivisionError
    assert not storage.exists(url)


def test_a_store_lists_what_is_new_by_the_beginning_of_names(store: FaultyS3) -> None:
    """And a run looks at keys alone: of parts that it has seen it hears no more, and of new ones it fetches no rows."""
    url, now = f"s3://{BUCKET}/ledger", time.time_ns() // 1_000_000
    old = [f"{url}/part-{now - 10**9 - n}-{'0' * 16}.arrow" for n in range(1001)]
    client = fsspec.filesystem("s3")
    client.pipe(dict.fromkeys(old, b""))
    before = store.requests["GET"]
    assert ledger_parts(url) == sorted(old)
    whole = store.requests["GET"] - before
    new = [write_part(url, [row(n)]) for n in range(3)]
    before = store.requests["GET"]
    assert ledger_parts(url, since_ms=now) == new and ledger_parts(url, since_ms=now - 10**10) == [*sorted(old), *new]
    assert store.requests["GET"] - before <= 4 + whole + 4 and whole >= 2

    finished = FinishedSince(url, now)
    finished.refresh()
    assert [finished.tokens(row(n).key) for n in range(4)] == [5, 5, 5, None]
    before = store.requests["GET"]
    for part in new:
        part_keys(part)
    assert store.requests["GET"] - before == 3
