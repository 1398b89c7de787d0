"""Outputs of others: what their JSON says opens no strange store, removes nothing elsewhere, and is one error."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import report
from pipelines.documents.inspect import Wanted, inspect
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.watch import progress, status
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.shards.dataset import PackedDataset
from sharding.shards.export import export
from sharding.storage import manifest
from tests.conftest import rehearsal_tree
from tests.foreign_output import make_output, manifest_of, rewrite
from tests.packed_output import write_output

Use = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    """A finished output; not to be changed."""
    return make_output(tmp_path_factory.mktemp("made"), byte_tokenizer)


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    shutil.copy(made.parent / "source.jsonl", tmp_path)
    return Path(shutil.copytree(made, tmp_path / "out"))


def read_all(output: Path) -> None:
    for _ in PackedDataset(str(output)):
        pass


USES: dict[str, Use] = {
    "verify": lambda output: verify(str(output)),
    "report": lambda output: report.render(str(output)),
    "inspect": lambda output: list(inspect(str(output), Wanted())),
    "status": lambda output: (progress.state(str(output)), status.read(str(output))),
    "export": lambda output: export(str(output), "olmo", str(output.parent / "exported")),
    "read": read_all,
}


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback: its address, and what it was asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def code_in_json(folder: Path) -> Path:
    """A reference store's description that runs code where its fields are taken for templates."""
    run = "{{ cycler.__init__.__globals__.os.mkdir('%s') }}" % (folder / "it-ran")
    path = folder / "reference.json"
    path.write_text(json.dumps({"version": 1, "templates": {"u": run}, "refs": {}, "gen": [
        {"key": run, "url": run, "dimensions": {"i": {"stop": 1}}}]}))  # fmt: skip
    return path


FOREIGN = [
    "reference::file://{json}",
    "reference://::{json}",
    "http://{address}/x",
    "HTTP://{address}/x",
    "ftp://{address}/x",
    "simplecache::http://{address}/x",
    "zip://x::http://{address}/x",
    "s3://bucket::http://{address}/x",
    "memory://x::http://{address}/x",
    "github://owner:name@main/",
    "nosuch://x",
]


@pytest.mark.parametrize("url", FOREIGN)
def test_a_store_that_an_output_names_is_one_that_outputs_are_kept_in(
    output: Path, server: tuple[str, list[str]], url: str
) -> None:
    address, asked = server
    url = url.format(json=code_in_json(output.parent), address=address)
    rewrite(manifest_of(output, "score"), lambda tree: tree.update(folder=url))
    rewrite(output / "stages/augment/plan.json", lambda plan: plan.update(ledger=url))
    for name in ("verify", "report", "inspect", "status"):
        with pytest.raises(MillError, match=r"names the folder '"):
            USES[name](output)
    (output / "stages/score" / manifest.MANIFEST_NAME).unlink()
    with pytest.raises(MillError, match=r"plan\.json names the folder '"):
        status.read(str(output))
    assert not asked and not (output.parent / "it-ran").exists()


@pytest.mark.parametrize("url", ["reference::file:///x.json", "simplecache::s3://b/k", "s3://a/b::http://c"])
def test_stores_are_never_joined(url: str) -> None:
    with pytest.raises(RequestError, match="joined by :: are not read"):
        storage.filesystem(url)


@pytest.mark.parametrize("kind", ["pipe", "device", "pipe behind a link"])
@pytest.mark.parametrize("name", ["MANIFEST.json", "data/train-00000-of-00001.arrow"])
def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path: Path, kind: str, name: str) -> None:
    output = tmp_path / "out"
    write_output(str(output), documents=30, train_shards=1)
    path, pipe = output / name, tmp_path / "pipe"
    path.unlink()
    os.mkfifo(path if kind == "pipe" else pipe)
    if kind != "pipe":
        path.symlink_to("/dev/zero" if kind == "device" else pipe)
    for use in (read_all, USES["export"]):
        with pytest.raises(MillError, match="it is a pipe or a device, not a file"):
            use(output)


# --- removing ---------------------------------------------------------------------------------------------------------

ELSEWHERE = ["../secret", "train/../../secret", "{parent}/secret", "a//b", "./secret", "memory://x", "a\\b", "", "."]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", [*ELSEWHERE, "thesis.txt", "train/thesis.txt", "train/train-00000-of-00001/x"])
def test_an_export_removes_what_exports_write_and_nothing_else(tmp_path: Path, name: str) -> None:
    output, target = tmp_path / "out", tmp_path / "target"
    write_output(str(output), documents=30, train_shards=1)
    export(str(output), "olmo", str(target))
    (tmp_path / "secret").write_text("mine")
    for own in ("thesis.txt", "train/thesis.txt"):
        (target / own).write_text("mine")
    rewrite(target / "EXPORT.json", lambda tree: tree["files"]["train"][0].update(name=name.format(parent=tmp_path)))
    before = everything(tmp_path)
    with pytest.raises(MillError, match=r"EXPORT\.json is not an export of this version: "):
        export(str(output), "parquet", str(target), replace=True)
    assert everything(tmp_path) == before


BAD_NAMES = [
    *ELSEWHERE,
    "ledger/part-00000-of-00001.arrow",
    "config.yaml",
    "stages/score/segments-00000-of-00001.arrow",
    "data/*-00000-of-00001.arrow",
    "data/train-00000-of-00001.arrow\n",
    "data/train-00000-of-" + "9" * 5_000 + ".arrow",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:50]))
@pytest.mark.parametrize("stage", ["pack", "score"])
def test_a_stage_s_manifest_names_what_the_stage_writes(output: Path, stage: str, name: str) -> None:
    (output.parent / "secret").write_text("mine")
    family = "shards" if stage == "pack" else "segments"
    rewrite(
        manifest_of(output, stage),
        lambda tree: tree["files"][family][0].update(name=name.format(parent=output.parent)),
    )
    before = everything(output.parent)
    with pytest.raises(MillError, match="is not a manifest of this"):
        verify(str(output))
    with pytest.raises(MillError, match="is not a manifest of this"):
        again(output, stage)
    assert everything(output.parent) == before


def again(output: Path, stage: str) -> None:
    """Make a stage of the output again, with another config."""
    tokenizer = json.loads(manifest_of(output, "select").read_text())["config"]["tokenizer"]
    tree = rehearsal_tree(output.parent, tokenizer, str(output.parent / "source.jsonl"))
    tree["pack"] |= {"sequence_length": 256}
    mill(from_mapping(tree), stages=[stage], replace=True)


LINKED = ["data", "stages", "stages/score", "stages/augment", "stages/select", "stages/augment/alive", "ledger"]


@pytest.mark.parametrize("name", LINKED)
def test_a_run_removes_and_writes_nothing_behind_a_link(output: Path, name: str) -> None:
    """A folder that leads elsewhere, with files there that are called as those that are to be removed."""
    victim, folder = output.parent / "victim", output / name
    folder.mkdir(exist_ok=True)
    (folder / "host-1-0123abcd.json").write_text("mine")
    shutil.move(folder, victim)
    folder.symlink_to(victim)
    before = everything(victim)
    for stage in ("score", "pack"):
        with pytest.raises(RequestError, match=f"{name} is a link to .*victim"):
            again(output, stage)
    assert everything(victim) == before


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/file"])
def test_only_the_file_itself_is_removed(tmp_path: Path, link: str) -> None:
    root, victim = tmp_path / "root", tmp_path / "victim"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("to be removed")
    shutil.move(root / link, victim)
    (root / link).symlink_to(victim)
    before = everything(victim) or victim.read_text()
    if link.endswith("file"):
        storage.remove(str(root / "a/b/file"), str(root))
        assert not (root / "a/b/file").is_symlink()
    else:
        with pytest.raises(MillError, match="is a link, and behind links nothing is removed"):
            storage.remove(str(root / "a/b/file"), str(root))
    assert (everything(victim) or victim.read_text()) == before


@pytest.mark.parametrize(
    "url", ["{root}/../victim", "{parent}/victim", "{root}", "{root}x/victim", "{root}/a/../../victim"]
)
def test_nothing_is_removed_but_below_the_folder(tmp_path: Path, url: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "rootx").mkdir()
    for name in ("victim", "rootx/victim"):
        (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(MillError, match="cannot remove"):
        storage.remove(url.format(root=tmp_path / "root", parent=tmp_path), str(tmp_path / "root"))
    assert everything(tmp_path) == before


# --- what JSON says ---------------------------------------------------------------------------------------------------

HUGE = [None, "text", [], {}, True, -1, 1.5, 10**400, "9" * 5_000]


def placed(tree: Any, path: str, value: Any) -> None:
    *keys, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in keys:
        tree = tree[key]
    tree[last] = value


MANIFEST_PLACES = {
    "pack": (
        *("format", "counts/rows", "config/pack", "config/pack/sequence_length", "config/card/name", "config/layout"),
        *("facts/vocab_size", "facts/document_end_ids", "files", "files/shards", "files/shards/0", "elapsed_s"),
        *("files/shards/0/rows", "files/shards/0/size_bytes", "files/shards/0/tokens", "files/shards/0/tokens/source"),
    ),
    "score": (
        *("config/tokenizer", "config/difficulty/threshold_nats", "facts/histogram", "facts/histogram/by_difficulty"),
        *("facts/vocab_size", "counts", "counts/documents", "counts/segments", "counts/source_tokens"),
    ),
    "augment": ("facts/tiers", "facts/tiers/0/segments", "facts/models", "facts/warnings/0", "config/budget/tiers"),
    "select": (
        *("facts/account/0/reasons", "facts/account/1/reasons", "facts/account/0/thought_tokens"),
        *("counts/kept", "counts/candidates"),
    ),
}
CASES = [(stage, place) for stage, places in MANIFEST_PLACES.items() for place in places]


@pytest.mark.parametrize(("stage", "place"), CASES)
def test_a_wrong_type_in_a_manifest_is_one_error(output: Path, stage: str, place: str) -> None:
    """Whatever reads it gives what it gives, or says which file is wrong; nothing else is raised."""
    path = manifest_of(output, stage)
    whole = path.read_text()
    refused = 0
    for value in HUGE:
        if place == "config/tokenizer" and isinstance(value, str):
            continue  # the hub would be asked for it
        tree = json.loads(whole)
        placed(tree, place, value)
        path.write_text(json.dumps(tree))
        for name, use in USES.items():
            shutil.rmtree(output.parent / "exported", ignore_errors=True)
            try:
                use(output)
            except MillError as error:
                refused += 1
                named = (str(output), "split:", "layout:")
                assert any(word in str(error) for word in named), (name, value)
                assert len(str(error)) < 2_000
    assert refused > len(HUGE)


@pytest.mark.parametrize(
    "place",
    [
        *("ledger", "models", "models/pretend", "models/pretend/name", "models/pretend/tokens_per_gpu_second"),
        *("prompts", "prompts/brief", "tiers", "tiers/brief", "tiers/brief/generations", "unit", "target"),
        *("generations", "rehearsal", "warnings", "warnings/0"),
    ],
)
def test_a_wrong_type_in_a_plan_is_one_error(output: Path, place: str) -> None:
    path = output / "stages/augment/plan.json"
    whole = path.read_text()
    for value in HUGE:
        tree = json.loads(whole)
        placed(tree, place, value)
        path.write_text(json.dumps(tree))
        for name in ("status", "report"):
            try:
                USES[name](output)
            except MillError as error:
                assert "plan.json" in str(error) or (place == "ledger" and "cannot list" in str(error))
    path.write_text("[" * 100_000)
    with pytest.raises(MillError, match=r"plan\.json is not a plan of this version"):
        status.read(str(output))


SNAPSHOT: dict[str, Any] = {
    "stage": "score",
    "at": 0.0,
    "elapsed_s": 1.0,
    "counts": {"tokens": 3},
    "tokens_per_second": 3.0,
}
SNAPSHOT["counts"] |= {"candidates": 4, "kept": 2}
SNAPSHOT["waits"] = [{"who": "small", "reason": "loading", "since": 1.0, "until": 9.0}]


@pytest.mark.parametrize(
    "place",
    [
        "stage",
        "at",
        "elapsed_s",
        "tokens_per_second",
        "counts",
        "counts/tokens",
        "counts/kept",
        "generation",
        "waits",
        "waits/0/since",
    ],
)
def test_a_wrong_type_in_a_snapshot_is_one_error(output: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "time", lambda: 10.0)
    path = output / "stages/progress.json"
    for value in HUGE:
        tree = json.loads(json.dumps(SNAPSHOT))
        placed(tree, place, value)
        path.write_text(json.dumps(tree))
        try:
            found = progress.published(str(output))
            if found is not None:
                progress.render(found)
                progress.line(found)
        except MillError as error:
            assert "progress.json is not a snapshot of a run" in str(error)


def test_a_wrong_type_in_a_heartbeat_leaves_it_out(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    alive = output / "stages/augment/alive"
    alive.mkdir()
    manifest_of(output, "augment").unlink()
    now = progress.time.time()
    good = {"at": now, "models": {"m": {"in_flight": 1, "waiting": 2, "capacity": 3, "failed": 0}}}
    (alive / "good.json").write_text(json.dumps(good))
    for number, value in enumerate([*HUGE, {"at": now, "models": {"m": {"in_flight": "x"}}}, {"at": now, "models": 1}]):
        (alive / f"{number}.json").write_text(json.dumps(value))
    (alive / "large.json").write_text(json.dumps(good | {"host": "x" * (1 << 17)}))
    (alive / "deep.json").write_text("[" * 50_000)
    found = status.read(str(output))["generation"]
    assert (found["processes"], found["in_flight"]) == (1, 1)
    assert len([r for r in caplog.records if "heartbeat left out" in r.getMessage()]) == len(HUGE) + 4


@pytest.mark.parametrize("data", [b'{"a":' * 100_000, b"[" + b"[]," * (1 << 22) + b"[]]"], ids=["deep", "wide"])
def test_what_json_takes_is_bounded(tmp_path: Path, data: bytes) -> None:
    import tracemalloc

    (tmp_path / "MANIFEST.json").write_bytes(b'{"format":2,"facts":' + data)
    tracemalloc.start()
    with pytest.raises(MillError, match=r"MANIFEST\.json is not a manifest of this version"):
        manifest.read(str(tmp_path), "pack")
    taken_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken_bytes < 2 * len(data) + (4 << 20)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "stages/augment/plan.json"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(
        MillError, match=r"plan\.json: 1,099,511,627,776 bytes, and such a file has at most 134,217,728"
    ):
        status.read(str(tmp_path))


@pytest.mark.parametrize("count", ["99999999999", "999999999", "00000", "131073"])
def test_a_number_of_parts_that_no_stage_writes_is_refused(output: Path, count: str) -> None:
    def rename(tree: dict[str, Any]) -> None:
        entry = tree["files"]["segments"][0]
        name = f"segments-00000-of-{count}.arrow"
        (output / "stages/score" / entry["name"]).rename(output / "stages/score" / name)
        entry["name"] = name

    rewrite(manifest_of(output, "score"), rename)
    try:
        problems = verify(str(output), deep=True).problems
    except MillError as error:
        assert "is not a manifest of this output" in str(error)
    else:
        assert any("its name says that it is part 0 of" in problem.what for problem in problems)


@pytest.mark.parametrize("column", ["bin_steps", "counts"])
def test_a_histogram_whose_columns_differ_in_length_is_one_error(output: Path, column: str) -> None:
    def shorten(tree: Any) -> None:
        del tree["facts"]["histogram"]["by_difficulty"][column][-1]

    rewrite(manifest_of(output, "score"), shorten)
    with pytest.raises(MillError, match=r"stages/score/MANIFEST\.json.*bin_steps, but \d+ counts"):
        manifest.read(str(output), "score")
