"""Verify catches what Arrow does not: every flipped bit, every cut, every lie of a manifest."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from pipelines.config import from_mapping
from pipelines.run import mill
from sharding import manifest
from sharding.errors import MillError
from sharding.verify import verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    rng = random.Random(0)
    lines = [" ".join(f"word{rng.randrange(500)}" for _ in range(200)) for _ in range(20)]
    (folder / "source.jsonl").write_bytes(b"".join(msgspec.json.encode({"text": line}) + b"\n" for line in lines))
    mill(
        from_mapping(
            {
                "source": {"path": str(folder / "source.jsonl")},
                "output": str(folder / "out"),
                "tokenizer": byte_tokenizer,
                "difficulty": {"scorer": "rehearsal"},
                "models": {"m": {"engine": "rehearsal", "name": "m"}},
                "budget": {
                    "thinking_tokens_per_source_token": 0.1,
                    "tiers": [{"name": "skip"}, {"name": "t", "model": "m", "prompt": "brief", "max_tokens": 64}],
                },
                "pack": {"sequence_length": 256, "num_shards": 2, "validation_fraction": 0.2},
            }
        )
    )
    return folder / "out"


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def shards(output: Path) -> list[Path]:
    return sorted((output / "data").glob("*.arrow"))


def test_a_sound_output_has_no_problems(output: Path) -> None:
    report = verify(str(output))
    assert report.problems == [] and report.files >= 4 and report.rows > 0


def test_every_flipped_bit_is_caught(output: Path) -> None:
    rng = random.Random(0)
    path = shards(output)[0]
    sound = path.read_bytes()
    caught = 0
    for _ in range(300):
        bit = rng.randrange(len(sound) * 8)
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        problems = verify(str(output)).problems
        caught += len(problems) == 1 and path.name in problems[0]
    assert caught == 300


def test_a_cut_at_every_batch_boundary_is_caught(output: Path) -> None:
    for path in shards(output):
        sound = path.read_bytes()
        ends = []
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for _ in reader:
                ends.append(source.tell())
        for end in {*ends, len(sound) - 1, len(sound) - 8, 0}:
            path.write_bytes(sound[: min(end, len(sound) - 1)])
            assert [path.name in problem for problem in verify(str(output)).problems] == [True]
        path.write_bytes(sound)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("pack", lambda m: m["files"]["shards"][0]["tokens"].update(source=1), "tokens"),
        ("pack", lambda m: m["files"]["shards"][0].update(rows=1), "rows"),
        ("pack", lambda m: m["facts"].update(vocab_size=3), "vocabulary"),
        ("score", lambda m: m["counts"].update(source_tokens=1), "source tokens"),
        ("select", lambda m: m["counts"].update(kept=0), "candidates"),
        ("score", lambda m: m["files"]["segments"][0].update(rows=1), "rows"),
    ],
)
def test_a_manifest_that_lies_is_caught(output: Path, stage: str, change: Change, said: str) -> None:
    path = Path(manifest.manifest_url(str(output), stage))
    tree = msgspec.json.decode(path.read_bytes())
    change(tree)
    path.write_bytes(msgspec.json.encode(tree))
    problems = verify(str(output)).problems
    assert problems and any(said in problem for problem in problems), problems


@pytest.mark.parametrize("gone", ["_SUCCESS", "stages/select/MANIFEST.json", "data/train-00000-of-00002.arrow"])
def test_what_is_missing_is_named(output: Path, gone: str) -> None:
    (output / gone).unlink()
    assert any(gone in problem for problem in verify(str(output)).problems)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(MillError, match="no finished run"):
        verify(str(tmp_path))
