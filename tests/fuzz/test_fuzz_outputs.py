"""Outputs that someone else has made or changed: names that lead elsewhere are refused, damage is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError
from sharding.shards.dataset import PackedDataset
from sharding.shards.export import export
from sharding.storage import manifest
from tests.conftest import rehearsal_tree
from tests.fuzz.conftest import Tally, fuzzed, random_of

NUM_MANIFESTS = 400


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    """A finished output; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    lines = [json.dumps({"id": str(i), "text": f"Document {i} says this. " * 20}) for i in range(8)]
    (folder / "source.jsonl").write_text("\n".join(lines))
    mill(from_mapping(rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl"))))
    return folder / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def rewrite(output: Path, change: Callable[[dict[str, Any]], None], stage: str = "pack") -> None:
    path = Path(manifest.manifest_url(str(output), stage))
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def read(output: Path) -> None:
    for _ in PackedDataset(str(output), "train"):
        pass


BAD_NAMES = [
    "../secret",
    "data/../../secret",
    "/etc/passwd",
    "",
    ".",
    "..",
    "a//b",
    "s3://b/k",
    "file:x",
    "a\\b",
    "a\0b",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_leads_elsewhere_is_refused(output: Path, name: str) -> None:
    secret = output.parent / "secret"
    secret.write_text("not yours")
    rewrite(output, lambda tree: tree["files"]["shards"][0].update(name=name))
    for use in (lambda: read(output), lambda: export(str(output), "olmo", str(output.parent / "exported"))):
        with pytest.raises(MillError, match="is no name of a file"):
            use()
    with pytest.raises(MillError, match="is no name of a file"):
        verify(str(output))
    assert secret.read_text() == "not yours"


@pytest.mark.slow
def test_replacing_removes_nothing_elsewhere(
    output: Path, rehearsal_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    secret = output.parent / "secret"
    secret.write_text("not yours")
    rewrite(output, lambda tree: tree["files"]["segments"][0].update(name="../../../secret"), "score")
    source = tmp_path / "source.jsonl"
    source.write_text('{"id": "1", "text": "some text"}')
    config = from_mapping(rehearsal_config(str(source), output=str(output)))
    with pytest.raises(MillError, match="is no name of a file"):
        mill(config, stages=["score"], replace=True)
    assert secret.exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"stage": "../.."}, {"stage": "score"}, {"folder": "../a/../../b"}], ids=str)
def test_a_manifest_of_elsewhere_is_refused(output: Path, change: dict[str, str]) -> None:
    rewrite(output, lambda tree: tree.update(change))
    with pytest.raises(MillError, match="is not a manifest of this output"):
        verify(str(output))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["/etc/hostname", "/dev/zero", "another shard", "nowhere", "itself"])
def test_a_shard_that_is_a_link_to_something_else_is_told(output: Path, target: str) -> None:
    shards = sorted((output / "data").glob("train-*.arrow"))
    shard = shards[0]
    shard.unlink()
    shard.symlink_to(
        {"another shard": shards[1], "nowhere": output / "none", "itself": shard}.get(target, Path(target))
    )
    problems = verify(str(output)).problems
    assert any(shard.name in problem.where for problem in problems), problems


@fuzzed
@pytest.mark.slow
def test_damaged_manifests_are_told(output: Path, tally: Tally) -> None:
    rng = random_of(11)
    path = output / manifest.MANIFEST_NAME
    whole = path.read_bytes()
    refused = 0
    for _ in range(NUM_MANIFESTS):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice([b"", b"\xff", b"{", b'"', b"9", b"null", b"-", b"[" * 2_000])
        path.write_bytes(data)
        try:
            manifest.read(str(output), "pack")
        except MillError as error:
            assert manifest.MANIFEST_NAME in str(error)
            refused += 1
    assert refused > NUM_MANIFESTS // 2
    tally("damaged manifests", {"read": NUM_MANIFESTS - refused, "refused by name": refused})
