"""Control arms: equal sequences from one source, one ledger and one scoring, each arm what its name says."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import yaml_config
from pipelines.arms import mill_arms
from pipelines.arms.kinds import DEFAULT_ARMS as ARMS
from pipelines.arms.kinds import arm_config
from pipelines.arms.result import render
from pipelines.borrowed_scores import BorrowedScores
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.stage import Did
from pipelines.verify import verify
from pipelines.watch import status
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.packing.recovery import items_of, thoughts_of
from sharding.records.rows import TokenType
from sharding.records.types import LedgerRow, Request
from sharding.shards.dataset import PackedDataset
from sharding.storage import manifest
from tests.conftest import rehearsal_tree
from tests.test_stages import hashes, shard_rows

SPLITS = ("train", "validation")


def documents() -> list[dict[str, str]]:
    rng = random.Random(3)
    words = [f"word{rng.randrange(900)}" for _ in range(5_000)]
    return [{"id": f"d{i}", "text": " ".join(words[i * 90 : i * 90 + rng.randrange(5, 200)])} for i in range(36)]


def config_in(folder: Path, tokenizer: str, **sections: Any) -> MillConfig:
    source = folder / "source.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    pack = {"sequence_length": 512, "num_shards": 3, "validation_fraction": 0.2, "raw_fraction": 0.1}
    return from_mapping(rehearsal_tree(folder, tokenizer, str(source), **{"pack": pack, **sections}))


def ledger_keys(config: MillConfig) -> Counter[str]:
    parts = Path(config.ledger_url).glob("part-*.arrow")
    return Counter(row.key for part in parts for row in storage.read_records(str(part), LedgerRow, columns=("key",)))


@pytest.fixture(scope="module")
def milled(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> MillConfig:
    config = config_in(tmp_path_factory.mktemp("arms"), byte_tokenizer)
    mill_arms(config)
    return config


def arm_output(config: MillConfig, name: str) -> str:
    return storage.join(config.output, "arms", name)


def requests(config: MillConfig, name: str) -> list[Request]:
    output = arm_output(config, name)
    augmented = manifest.require(output, "augment")
    return [
        request
        for url in manifest.file_urls(output, augmented, "requests")
        for request in storage.read_records(url, Request)
    ]


@pytest.mark.slow
def test_every_arm_trains_on_equally_many_sequences(milled: MillConfig) -> None:
    for split in SPLITS:
        sizes = {name: len(PackedDataset(arm_output(milled, name), split)) for name in ARMS}
        assert len(set(sizes.values())) == 1 and sizes["raw"] > 0, sizes
    for name in ARMS:
        packed = manifest.require(arm_output(milled, name), "pack")
        rows = [entry.rows for entry in packed.files["shards"] if "train" in entry.name]
        assert max(rows) - min(rows) <= 1
    left_out = {name: manifest.require(arm_output(milled, name), "pack").counts["rows_left_out"] for name in ARMS}
    assert left_out["raw"] == 0 and all(left_out[name] > 0 for name in ARMS if name != "raw")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_an_output_like_any_other(milled: MillConfig, name: str) -> None:
    output = arm_output(milled, name)
    assert [str(problem) for problem in verify(output, deep=True).problems] == []
    found = status.read(output)
    assert found["complete"] and set(found["stages"].values()) == {"done"}
    assert f"arm {name}" in Path(output, "README.md").read_text()
    assert not (Path(output) / "stages" / "score" / "segments-00000-of-00001.arrow").exists()


@pytest.mark.slow
def test_the_arms_of_a_weighed_source_are_sound(tmp_path: Path, byte_tokenizer: str) -> None:
    """Copies and a number of rows at once: of some documents more copies are left than of others, or parts of one."""
    tree = yaml_config.to_mapping(config_in(tmp_path, byte_tokenizer))
    tree["source"], tree["sources"] = None, [{**tree["source"], "name": "web"}]
    tree["pack"]["source_weights"] = {"web": 2.5}
    config = from_mapping(tree)
    mill_arms(config)
    for name in ARMS:
        assert [str(problem) for problem in verify(arm_output(config, name), deep=True).problems] == []


@pytest.mark.slow
def test_the_arms_are_what_they_are_called(milled: MillConfig) -> None:
    assert requests(milled, "raw") == []
    raw = arm_output(milled, "raw")
    assert not any((row.token_type == TokenType.THOUGHT).any() for row in shard_rows(raw))
    policies = {name: manifest.require(arm_output(milled, name), "augment").config["budget"] for name in ARMS}
    assert policies["uniform"]["policy"] == "uniform"
    assert policies["adaptive"]["policy"] == policies["rephrase"]["policy"] == "adaptive"
    adaptive, rephrase = ({r.segment_id: r for r in requests(milled, name)} for name in ("adaptive", "rephrase"))
    assert {r.prompt for r in adaptive.values()} == {"brief", "expert"}
    assert {r.prompt for r in rephrase.values()} == {"rephrase"}
    assert {key: r.tier for key, r in adaptive.items()} == {key: r.tier for key, r in rephrase.items()}
    assert set(adaptive) != {r.segment_id for r in requests(milled, "uniform")}


@pytest.mark.slow
def test_the_table_says_what_the_shards_hold(milled: MillConfig) -> None:
    table = json.loads(Path(milled.output, "arms", "arms.json").read_text())
    assert list(table) == sorted(ARMS)
    for name, arm in table.items():
        rows = shard_rows(arm["output"])
        kinds = np.bincount(np.concatenate([row.token_type for row in rows]), minlength=4)
        assert (arm["source_tokens"], arm["thought_tokens"], arm["delimiter_tokens"]) == tuple(kinds[1:].tolist())
        full = [row for row in rows if len(row.seq_lengths)]
        assert arm["training_tokens"] == len(full) * 512 == sum(arm["sequences"].values()) * 512
        items = [item for row in full for item in items_of(row)]
        assert arm["documents"] == sum(item.source_start == 0 for item in items)
        assert bool(arm["thought_tokens"]) == any(thoughts_of(item) for item in items) == (name != "raw")
        assert bool(arm["generation_tokens"]) == (name != "raw")
        counts = manifest.require(arm["output"], "pack").counts
        scored = manifest.require(milled.output, "score").counts["source_tokens"]
        assert arm["source_tokens"] + arm["source_tokens_left_out"] == scored
        assert arm["thought_tokens"] + arm["thought_tokens_left_out"] == counts["thought_tokens"]
        assert arm["rehearsal"]
    shares = {name: arm["source_tokens"] for name, arm in table.items()}
    assert shares["raw"] == max(shares.values())
    assert shares["raw"] == scored


@pytest.mark.slow
def test_what_the_arms_share_is_made_once(milled: MillConfig) -> None:
    assert max(ledger_keys(milled).values()) == 1
    segments = list(Path(milled.output).rglob("segments-*.arrow"))
    assert len(segments) == 1 and "arms" not in segments[0].parts
    assert not Path(milled.output, "data").exists()


@pytest.mark.slow
def test_interrupted_arms_go_on_and_come_to_the_same(milled: MillConfig, tmp_path: Path, byte_tokenizer: str) -> None:
    config = config_in(tmp_path, byte_tokenizer)

    def interrupt(arm: str, stage: str, found: Any, did: Any) -> None:
        if (arm, stage) == ("adaptive", "select") and found is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mill_arms(config, on_stage=interrupt)
    assert not Path(config.output, "arms", "arms.json").exists()
    bought = ledger_keys(config)
    again: dict[tuple[str, str], Did] = {}
    mill_arms(config, on_stage=lambda arm, stage, found, did: found and again.update({(arm, stage): did}))
    done = [key for key, did in again.items() if did == Did.NOTHING]
    assert done == [
        ("", "score"),
        *((a, s) for a in ("raw", "uniform") for s in manifest.STAGES),
        ("adaptive", "score"),
        ("adaptive", "augment"),
    ]
    assert max(ledger_keys(config).values()) == 1 and bought <= ledger_keys(config)
    for name in ARMS:
        assert hashes(arm_output(config, name)) == hashes(arm_output(milled, name))
    table = Path(config.output, "arms", "arms.json").read_text()
    assert table == Path(milled.output, "arms", "arms.json").read_text().replace(milled.output, config.output)


@pytest.mark.slow
def test_an_output_with_its_arms_may_be_moved(milled: MillConfig, tmp_path: Path) -> None:
    moved = shutil.copytree(milled.output, tmp_path / "elsewhere")
    output = str(moved / "arms" / "adaptive")
    assert [str(problem) for problem in verify(output, deep=True).problems] == []
    (moved / "stages" / "score" / "segments-00000-of-00001.arrow").write_bytes(b"")
    assert any("elsewhere/stages/score/segments" in str(problem) for problem in verify(output, deep=True).problems)


@pytest.mark.slow
def test_making_an_arm_again_leaves_the_scores_alone(tmp_path: Path, byte_tokenizer: str) -> None:
    config = config_in(tmp_path, byte_tokenizer)
    lent = mill(config, stages=["score"])["score"]
    other = tmp_path / "other"
    tree = rehearsal_tree(other, byte_tokenizer, str(tmp_path / "source.jsonl"), scored=config.output)
    borrower = from_mapping(tree)
    borrowed, did = BorrowedScores(borrower).run()
    assert did == Did.RAN and BorrowedScores(borrower).run()[1] == Did.NOTHING
    assert manifest.digest(borrowed) == manifest.digest(lent)
    (url,) = manifest.file_urls(borrower.output, borrowed, "segments")
    assert url == manifest.file_urls(config.output, lent, "segments")[0]
    # Scored otherwise, and lent again: refused, then taken over on request.
    changed = from_mapping({**tree, "difficulty": {"scorer": "rehearsal", "segment_tokens": 32}})
    with pytest.raises(RequestError, match=r"scored: .*difficulty.segment_tokens: 64 → 32"):
        BorrowedScores(changed).run()
    again = config_in(tmp_path, byte_tokenizer, difficulty={"scorer": "rehearsal", "segment_tokens": 32})
    mill(again, stages=["score"], replace=True)
    with pytest.raises(RequestError, match="--replace"):
        BorrowedScores(changed).run()
    BorrowedScores(changed).run(replace=True)
    assert all(
        storage.exists(url)
        for url in manifest.file_urls(again.output, manifest.require(again.output, "score"), "segments")
    )


def test_scores_that_are_not_there(tmp_path: Path, byte_tokenizer: str) -> None:
    config = config_in(tmp_path, byte_tokenizer, scored=str(tmp_path / "nowhere"))
    with pytest.raises(MillError, match=r"nowhere/stages/score/MANIFEST\.json is missing"):
        mill(config, stages=["score"])
    with pytest.raises(RequestError, match="is the output itself"):
        config_in(tmp_path, byte_tokenizer, scored=str(tmp_path / "out") + "/")


def test_the_configs_of_the_arms_differ_in_nothing_else(tmp_path: Path, byte_tokenizer: str) -> None:
    config = config_in(tmp_path, byte_tokenizer)
    arms = {name: arm_config(config, name, {"train": 7}) for name in ARMS}
    for name, arm in arms.items():
        assert (arm.scored, arm.ledger_url) == (config.output, config.ledger_url)
        assert arm.output == f"{config.output}/arms/{name}" and arm.pack.max_rows == {"train": 7}
        assert (arm.tokenizer, arm.difficulty, arm.select, arm.layout) == (
            config.tokenizer,
            config.difficulty,
            config.select,
            config.layout,
        )
    assert [tier.name for tier in arms["raw"].budget.tiers] == ["skip"]
    assert arms["rephrase"].budget.tiers[0].prompt is None
    assert arms["uniform"].budget.tiers == config.budget.tiers == arms["adaptive"].budget.tiers


def test_an_unknown_arm_is_refused(tmp_path: Path, byte_tokenizer: str) -> None:
    config = config_in(tmp_path, byte_tokenizer)
    with pytest.raises(RequestError, match="arms: 'none' is not one of raw, uniform, adaptive, rephrase"):
        mill_arms(config, ["adaptive", "none"])
    assert not Path(config.output).exists()


@pytest.mark.slow
def test_some_arms_come_with_the_raw_one(tmp_path: Path, byte_tokenizer: str) -> None:
    from rich.console import Console

    config = config_in(tmp_path, byte_tokenizer)
    results = mill_arms(config, ["adaptive"])
    assert list(results) == ["raw", "adaptive"]
    assert {path.name for path in Path(config.output, "arms").iterdir()} == {"raw", "adaptive", "arms.json"}
    console = Console(width=200, record=True)
    console.print(render(results))
    said = console.export_text()
    assert f"{results['adaptive'].thought_tokens:,}" in said and "raw" in said
