"""Structure-aware: JSON and Arrow files of an output, changed where it matters, under hashes and names that fit.

Whatever is thrown at them, the commands that read an output give what they give or one MillError: no traceback, no
hang, no memory beyond twice what they had, nothing made, changed or removed outside of the output.
"""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from augment.ledger import compaction, parts
from augment.ledger.reading import collapse_duplicates, read_ledger
from pipelines import report
from pipelines.documents import reader
from pipelines.documents.inspect import Wanted, inspect
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.watch import progress, status
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError
from sharding.shards.dataset import PackedDataset
from sharding.shards.export import FORMATS, export
from sharding.shards.export.target import EXPORT_NAME
from sharding.storage import manifest
from tests.conftest import rehearsal_tree
from tests.foreign_output import first_file, make_output, only_batch, replace_file, stream
from tests.fuzz.conftest import Tally, rounds

LONGEST_S = 60.0
"""Of one reading, on a machine that does other things too."""

NUMBERS = [0, -1, 1, 2, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 10**400, 0.5, -0.5, 1e308, -1e308, 5e-324]
TEXTS = ["", "text", "\x00", "\x1b]0;x\x07", "é" * 300, "x" * 100_000, "none", "tokens", "gpu_hours", "after_segment"]
PLACES = [
    *("../secret", "../../secret", "/etc/passwd", "{outside}/secret", "a/../../secret", ".", "..", "", "*", "data/*"),
    *("reference::file:///x.json", "http://127.0.0.1:9/x", "s3://a::http://127.0.0.1:9/x", "memory://nothing", "C:\\x"),
    *("data/train-00000-of-99999999999.arrow", "segments-99999-of-00001.arrow", "ledger/part-1-a.arrow", "config.yaml"),
]
ODD: list[Any] = [None, True, False, [], {}, [[]], [None], {"a": {"b": 1}}, *NUMBERS, *TEXTS, *PLACES]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [p for key, child in children for p in [(*path, key), *places(child, (*path, key))]]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def changed(rng: random.Random, tree: Any, outside: Path) -> bytes:
    """A JSON file with one to three values replaced, taken away, doubled or moved; now and then damaged besides."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randrange(1, 4)):
        *path, last = rng.choice(places(tree) or [("x",)])
        node = at(tree, tuple(path))
        roll = rng.random()
        if roll < 0.6:
            value = copy.deepcopy(rng.choice(ODD))
            node[last] = value.format(outside=outside) if value in PLACES else value
        elif roll < 0.75:
            del node[last]
        elif roll < 0.85:
            node[last] = copy.deepcopy(at(tree, rng.choice(places(tree) or [()])))
        elif isinstance(node, list):
            node.extend(copy.deepcopy(node) * rng.randrange(1, 4))
        else:
            node[rng.choice(["", "\x00", "name", "x" * 500, "shards", "kept"])] = copy.deepcopy(rng.choice(ODD))
    data = json.dumps(tree).encode()
    if rng.random() < 0.1:
        cut = rng.randrange(len(data))
        data = data[:cut] + rng.choice([b"", b"[" * 50_000, b'{"a":' * 50_000, b"\xff", b"1" * 5_000]) + data[cut:]
    return data


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def kib(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


class Watch:
    """What each reading came to, and that none took long, much memory, or anything outside.

    Args:
        outside: a folder that nothing may touch.
    """

    def __init__(self, outside: Path) -> None:
        self.outside, self.before = outside, everything(outside)
        self.outcomes = Counter[str]()
        self.least_kib = 0

    def read(self, what: str, seed: Any, use: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            use()
            self.outcomes["read"] += 1
        except MillError as error:
            assert str(error).strip(), (what, seed)
            self.outcomes["refused by name"] += 1
        except BaseException as error:
            raise AssertionError(f"{what}, {seed}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - began < LONGEST_S, (what, seed)
        assert everything(self.outside) == self.before, (what, seed)

    def warmed_up(self) -> None:
        """From here on memory is looked at."""
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        self.least_kib = kib("VmRSS")

    def end(self, tally: Tally, what: str) -> None:
        most_kib = kib("VmHWM")
        assert most_kib < 2 * self.least_kib, f"{self.least_kib} KiB became {most_kib}"
        tally(f"{what}, memory at most ×{most_kib / self.least_kib:.2f}", self.outcomes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    return make_output(tmp_path_factory.mktemp("made"), byte_tokenizer)


@pytest.fixture
def output(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole output, whose manifests may name any tokenizer: the hub isn't asked for it."""
    output = Path(shutil.copytree(made, tmp_path / "in" / "out"))
    plan = output / "stages/augment/plan.json"
    plan.write_text(plan.read_text().replace(str(made), str(output)))
    there = json.loads((output / "MANIFEST.json").read_text())["config"]["tokenizer"]
    load = reader.load_tokenizer

    def load_tokenizer(name: str) -> Any:
        if name != there:
            raise MillError(f"no tokenizer {name!r}")
        return load(name)

    monkeypatch.setattr(reader, "load_tokenizer", load_tokenizer)
    return output


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("mine")
    return Watch(outside)


def read_rows(output: Path) -> None:
    for _ in PackedDataset(str(output)):
        pass


USES: dict[str, Callable[[Path], Any]] = {
    "verify": lambda output: verify(str(output), workers=2),
    "report": lambda output: report.render(str(output)),
    "inspect": lambda output: list(inspect(str(output), Wanted())),
    "status": lambda output: status.render(status.read(str(output))),
    "state": lambda output: [progress.render(doing) for doing in progress.state(str(output))[1:] if doing],
    "export": lambda output: export(str(output), "parquet", str(output.parent / "exported"), replace=True),
    "read": read_rows,
}
JSON_FILES = [
    *("MANIFEST.json", "stages/score/MANIFEST.json", "stages/augment/MANIFEST.json", "stages/select/MANIFEST.json"),
    *(
        "stages/augment/plan.json",
        "difficulty.json",
        "stages/progress.json",
        "stages/augment/alive/host-1-0a1b2c3d.json",
    ),
]


@pytest.mark.slow
def test_json_files(output: Path, watch: Watch, tally: Tally) -> None:
    now = time.time()
    others: dict[str, Any] = {
        "stages/progress.json": {
            "stage": "score",
            "at": now,
            "elapsed_s": 1.0,
            "counts": {"tokens": 3},
            "tokens_per_second": 3.0,
            "generation": None,
            "warning": "w",
            "run": "r",
        },
        "stages/augment/alive/host-1-0a1b2c3d.json": {
            "at": now,
            "host": "h",
            "models": {"m": {"in_flight": 1, "waiting": 2, "capacity": 3, "failed": 0}},
        },
    }
    (output / "stages/augment/alive").mkdir()
    for name, tree in others.items():
        (output / name).write_text(json.dumps(tree))
    whole = {name: (output / name).read_bytes() for name in JSON_FILES}
    finished = output / "stages/augment" / manifest.MANIFEST_NAME
    for number, (seed, rng) in enumerate(rounds(40)):
        name = rng.choice(JSON_FILES)
        (output / name).write_bytes(changed(rng, json.loads(whole[name]), watch.outside))
        if "alive" in name:
            finished.unlink()  # heartbeats are looked at while it is under way
        for what, use in USES.items():
            watch.read(f"{what} of {name}", seed, lambda use=use: use(output))  # type: ignore[misc]
        (output / name).write_bytes(whole[name])
        finished.write_bytes(whole["stages/augment/MANIFEST.json"])
        if number == 14:
            watch.warmed_up()
    watch.end(tally, "JSON of outputs")


@pytest.mark.slow
def test_replacing(output: Path, watch: Watch, tally: Tally) -> None:
    """A stage that is made again takes away what a changed manifest names, and nothing that isn't a stage's."""
    source = output.parent / "source.jsonl"
    source.write_text('{"id": "1", "text": "some text"}')
    tokenizer = json.loads((output / "MANIFEST.json").read_text())["config"]["tokenizer"]
    whole = {name: (output / name).read_bytes() for name in JSON_FILES[:4]}
    own = {path: path.read_bytes() for path in [*(output / "ledger").glob("*"), output / "config.yaml"]}
    for number, (seed, rng) in enumerate(rounds(8)):
        tree = rehearsal_tree(output.parent, tokenizer, str(source))
        tree["pack"] |= {"sequence_length": 256 + number % 1_000}
        name = rng.choice(JSON_FILES[:4])
        (output / name).write_bytes(changed(rng, json.loads(whole[name]), watch.outside))
        config = from_mapping(tree)
        watch.read(f"pack of {name}", seed, lambda config=config: mill(config, stages=["pack"], replace=True))  # type: ignore[misc]
        assert all(path.read_bytes() == data for path, data in own.items() if path.name != "config.yaml"), seed
        for name, data in whole.items():
            (output / name).write_bytes(data)
        if number == 3:
            watch.warmed_up()
    watch.end(tally, "stages made again")


@pytest.mark.slow
def test_export_json(output: Path, watch: Watch, tally: Tally) -> None:
    target = output.parent / "target"
    own = {target / "thesis.txt": b"mine", target / "train/thesis.txt": b"mine"}
    for number, (seed, rng) in enumerate(rounds(90)):
        shutil.rmtree(target, ignore_errors=True)
        export(str(output), rng.choice(list(FORMATS)), str(target))
        tree = json.loads((target / EXPORT_NAME).read_text())
        (target / EXPORT_NAME).write_bytes(changed(rng, tree, watch.outside))
        with_own = rng.random() < 0.5
        for path, data in own.items() if with_own else ():
            path.write_bytes(data)
        fmt = rng.choice(list(FORMATS))
        watch.read("export", seed, lambda fmt=fmt: export(str(output), fmt, str(target), replace=True))  # type: ignore[misc]
        assert not with_own or all(path.read_bytes() == data for path, data in own.items()), seed
        if number == 29:
            watch.warmed_up()
    watch.end(tally, "EXPORT.json")


# --- Arrow ------------------------------------------------------------------------------------------------------------


def odd_column(rng: random.Random, rows: int) -> pa.Array:
    """Values of some type."""
    kind = rng.choice(
        [
            *(pa.string(), pa.binary(), pa.large_string(), pa.int8(), pa.int32(), pa.int64(), pa.uint32()),
            *(pa.float16(), pa.float64(), pa.bool_(), pa.timestamp("us"), pa.decimal128(9, 2), pa.null()),
            *(pa.list_(pa.uint32()), pa.list_(pa.string()), pa.list_(pa.uint16(), 3)),
            *(pa.struct([("a", pa.int32())]), pa.map_(pa.string(), pa.int8())),
        ]
    )  # fmt: skip
    if rng.random() < 0.3:
        return pa.nulls(rows, kind)
    if pa.types.is_floating(kind):
        return pa.array(np.array(rng.choices([0.0, np.nan, np.inf, -1.0, 6e4], k=rows), kind.to_pandas_dtype()))
    if pa.types.is_integer(kind):
        return pa.array([rng.choice([0, 1, -1, 127, 2**31 - 1]) % 128 for _ in range(rows)], kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return pa.array([rng.choice(["", "x", "é" * 99, "\x00"]) for _ in range(rows)], kind)
    return pa.nulls(rows, kind)


def odd_stream(rng: random.Random, batch: pa.RecordBatch) -> bytes:
    """A stream like one of the batch: with other columns, batches, offsets, sizes or bytes."""
    for _ in range(rng.randrange(3)):
        index = rng.randrange(batch.num_columns)
        column = odd_column(rng, batch.num_rows)
        roll, name = rng.random(), batch.schema.names[index]
        if roll < 0.6:
            batch = batch.set_column(index, pa.field(name, column.type), column)
        elif roll < 0.8 and batch.num_columns > 1:
            batch = batch.remove_column(index)
        else:
            batch = batch.append_column(rng.choice([name, "other"]), column)
    if rng.random() < 0.2:
        batch = pa.concat_batches([batch] * rng.randrange(2, 30))
    data = bytearray(stream(batch, rng.choice([None, "zstd", "lz4"])))
    for _ in range(rng.randrange(4)):
        roll = rng.random()
        place = rng.randrange(len(data) // 4) * 4
        if roll < 0.5:  # offsets, lengths of buffers, sizes that are stated, fields of the heads: all aligned numbers
            data[place : place + 4] = rng.choice([0, -1, 1, 7, 2**30, -(2**31), 2**31 - 1]).to_bytes(
                4, "little", signed=True
            )
        elif roll < 0.7:
            data[place : place + 8] = rng.choice([-1, -2, 2**40, 2**62]).to_bytes(8, "little", signed=True)
        elif roll < 0.9:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
            data += b"\0" * rng.randrange(64)
    return bytes(data)


@pytest.mark.slow
def test_ledger_parts(output: Path, watch: Watch, tally: Tally, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")  # the warnings alone would be what memory grows by
    ledger = output / "ledger"
    [part] = ledger.glob("part-*.arrow")
    good, batch = part.read_bytes(), only_batch(part)
    rows = batch.num_rows
    for number, (seed, rng) in enumerate(rounds(200)):
        shutil.rmtree(ledger)
        ledger.mkdir()
        (ledger / f"part-1-{parts._digest(good)}.arrow").write_bytes(good)
        for data in (odd_stream(rng, batch) for _ in range(rng.randrange(1, 3))):
            (ledger / f"part-2-{parts._digest(data)}.arrow").write_bytes(data)
        columns = rng.choice([None, ("key",), ("key", "request_key", "sample", "thought_tokens", "finished_at")])
        watch.read("ledger", seed, lambda columns=columns: collapse_duplicates(read_ledger(str(ledger), columns)))  # type: ignore[misc]
        watch.read("status", seed, lambda: status.render(status.read(str(output))))
        watch.read("compaction", seed, lambda: compaction.compact(str(ledger)))
        assert len(list(read_ledger(str(ledger), ("key",)))) >= rows, "what is sound was lost"
        if number == 66:
            watch.warmed_up()
    watch.end(tally, "ledger parts")


@pytest.mark.slow
def test_parts_and_shards(output: Path, watch: Watch, tally: Tally) -> None:
    families = [
        ("score", "segments"),
        ("select", "kept"),
        ("select", "rejected"),
        ("pack", "shards"),
        ("augment", "requests"),
    ]
    files = {family: first_file(output, *family) for family in families}
    whole = {path: path.read_bytes() for path in (*files.values(), *map(Path, output.rglob("MANIFEST.json")))}
    for number, (seed, rng) in enumerate(rounds(90)):
        stage, family = rng.choice(families)
        data = odd_stream(rng, only_batch(files[stage, family]))
        replace_file(output, stage, family, data)
        for what in ("verify", "report", "inspect", "export", "read"):
            watch.read(f"{what} of {family}", seed, lambda what=what: USES[what](output))  # type: ignore[misc]
        for path, data in whole.items():
            path.write_bytes(data)
        if number == 29:
            watch.warmed_up()
    watch.end(tally, "parts and shards")
