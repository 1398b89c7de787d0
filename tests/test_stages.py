"""The four stages on real Beam pipelines with the rehearsal scorer and engine: what must hold of the whole."""

import json
import random
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from augment.ledger.compaction import compact
from augment.ledger.reading import read_ledger
from pipelines.run import mill
from pipelines.stage import Did
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.rows import Row, TokenType
from sharding.records.types import Candidate, LedgerRow, Quarantined, ScoredSegment
from sharding.shards.dataset import PackedDataset
from sharding.shards.export import export
from sharding.shards.grain_sources import DocumentSource
from sharding.shards.sampler import PackedSampler
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from tests.conftest import rehearsal_tree

HOSTILE = [
    "A turn ends<|im_end|>\n<|im_start|>assistant\nand a thought<think>begins</think><|endoftext|> here.",
    "<|endoftext|>",
    "word",
    " ",
    "nul \x00 and escape \x1b and delete \x7f",
    "日本語のテキスト。結合文字 e\u0301 と絵文字 👩‍👩‍👧‍👦 と \u202e 右から左。",
    "tabs\t\tand\r\nreturns\n\n\n\nand    spaces   ",
]


def documents() -> list[dict[str, str]]:
    rng = random.Random(0)
    words = "the of and to in is that it was for on are as with his they at be this from have or by".split()  # noqa: SIM905
    plain = [" ".join(rng.choices(words, k=rng.randint(1, 700))) for _ in range(30)]
    return [{"id": f"doc-{i}", "text": text} for i, text in enumerate(HOSTILE + plain)]


def shard_rows(output: str) -> list[Row]:
    packed = manifest.require(output, "pack")
    return [row for url in manifest.file_urls(output, packed, "shards") for row in storage.read_records(url, Row)]


def source_texts(output: str, tokenizer_name: str) -> dict[str, str]:
    """Every document's text as the shards hold it: its source tokens in order, decoded."""
    pieces: dict[str, list[tuple[int, np.ndarray]]] = {}
    for row in shard_rows(output):
        start = 0
        for length, doc_id, source_start in zip(row.seq_lengths, row.doc_ids, row.source_starts, strict=True):
            span = slice(start, start + int(length))
            source = row.input_ids[span][row.token_type[span] == TokenType.SOURCE]
            pieces.setdefault(doc_id, []).append((int(source_start), source))
            start += int(length)
    tokenizer = load_tokenizer(tokenizer_name)
    texts = {}
    for doc_id, parts in pieces.items():
        parts.sort(key=lambda part: part[0])
        position = 0
        for source_start, source in parts:
            assert source_start == position, f"{doc_id}: a piece is missing or double"
            position += len(source)
        texts[doc_id] = tokenizer.decode(np.concatenate([source for _, source in parts]))
    return texts


def hashes(output: str) -> dict[str, str]:
    return {entry.name: entry.sha256 for entry in manifest.require(output, "pack").files["shards"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    """The output of a run of the documents; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "source.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents()))
    config = from_mapping(rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl")))
    mill(config)
    return config.output


@pytest.fixture
def run(write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]) -> Callable[..., str]:
    """Mills the documents and gives the output folder."""
    source = write_jsonl(documents())

    def go(beam_args: tuple[str, ...] = (), replace: bool = False, **sections: Any) -> str:
        config = from_mapping(rehearsal_config(source, **sections))
        mill(config, beam_args=beam_args, replace=replace)
        return config.output

    return go


def test_source_text_comes_back_byte_for_byte(finished: str, byte_tokenizer: str) -> None:
    output = finished
    assert source_texts(output, byte_tokenizer) == {d["id"]: d["text"] for d in documents()}
    assert verify(output).problems == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["after_segment", "before_segment"])
def test_other_layouts_keep_the_source_too(run: Callable[..., str], byte_tokenizer: str, layout: str) -> None:
    output = run(layout=layout, pack={"sequence_length": 200, "num_shards": 3, "validation_fraction": 0.3})
    assert source_texts(output, byte_tokenizer) == {d["id"]: d["text"] for d in documents()}
    assert verify(output).problems == []


def test_raw_text_never_becomes_a_control_token(finished: str, byte_tokenizer: str) -> None:
    control = np.array(sorted(load_tokenizer(byte_tokenizer).control_ids))
    for row in shard_rows(finished):
        body = (row.token_type == TokenType.SOURCE) | (row.token_type == TokenType.THOUGHT)
        assert not np.isin(row.input_ids[body], control).any()


def test_every_count_adds_up(finished: str) -> None:
    output = finished
    scored, augmented, selected, packed = (manifest.require(output, stage) for stage in manifest.STAGES)
    assert scored.counts["documents_in"] == len(documents()) == scored.counts["documents"]
    assert sum(tier["segments"] for tier in augmented.facts["tiers"]) == scored.counts["segments"]
    kept = list(_records(output, selected, "kept", Candidate))
    rejected = list(_records(output, selected, "rejected", Candidate))
    assert len(kept) + len(rejected) == selected.counts["candidates"] == augmented.counts["generations"]
    assert kept and rejected
    assert all(candidate.kept and not candidate.reasons for candidate in kept)
    assert all(not candidate.kept and candidate.reasons for candidate in rejected)
    by_reason = Counter(f"rejected.{candidate.reasons[0]}" for candidate in rejected)
    assert by_reason == {name: n for name, n in selected.counts.items() if name.startswith("rejected.")}
    assert packed.counts["tokens_thought"] == sum(len(candidate.input_ids) for candidate in kept)
    assert packed.counts["tokens_source"] == scored.counts["source_tokens"]


def _records(output: str, stage: Manifest, family: str, kind: type[Any]) -> Any:
    for url in manifest.file_urls(output, stage, family):
        yield from storage.read_records(url, kind)


def test_the_budget_is_kept(finished: str) -> None:
    augmented = manifest.require(finished, "augment")
    assert abs(augmented.facts["planned_tokens"] / augmented.facts["target_spend"] - 1) <= 0.01
    assert augmented.counts["thought_tokens"] <= augmented.facts["planned_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "price", "amount"),
    [("dollars", "dollars_per_million_tokens", 0.01), ("gpu_hours", "tokens_per_gpu_second", 0.001)],
)
def test_a_budget_in_money_or_hours_needs_the_model_s_price(
    run: Callable[..., str], unit: str, price: str, amount: float
) -> None:
    tiers = [{"name": "skip"}, {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 48}]
    budget = {unit: amount, "tiers": tiers}
    model = {"engine": "rehearsal", "name": "pretend"}
    with pytest.raises(RequestError, match=rf"models\.pretend\.{price}"):
        run(budget=budget, models={"pretend": model})
    output = run(budget=budget, models={"pretend": {**model, price: 4.0 if unit == "dollars" else 1000.0}})
    facts = manifest.require(output, "augment").facts
    assert facts["unit"] == unit and facts["planned_spend"] == pytest.approx(amount, rel=0.02)


def test_shards_differ_by_a_row_at_most_and_none_is_padding(run: Callable[..., str]) -> None:
    output = run(pack={"sequence_length": 128, "num_shards": 5})
    packed = manifest.require(output, "pack")
    rows = [entry.rows for entry in packed.files["shards"]]
    assert max(rows) - min(rows) == 1, "the example should not divide"
    assert sum(rows) == packed.counts["rows_train"] and not any(e.padding_rows for e in packed.files["shards"])
    assert all(len(row.seq_lengths) for row in shard_rows(output))


def test_with_fewer_rows_than_shards_every_reader_gets_the_rows_alone(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Rows of padding came out of `load_dataset`, which knows nothing of them; now some shards are empty."""
    from datasets import load_dataset

    source = write_jsonl([{"id": str(i), "text": f"Document {i}. " * 8} for i in range(3)])
    tree = rehearsal_config(source, pack={"sequence_length": 256, "num_shards": 8})
    output = str(tree["output"])
    mill(from_mapping(tree))
    rows = shard_rows(output)
    files = manifest.require(output, "pack").files["shards"]
    assert len(files) == 8 and sorted(entry.rows for entry in files) == [0] * (8 - len(rows)) + [1] * len(rows)
    assert verify(output, deep=True).problems == []
    for streaming in (False, True):
        loaded = load_dataset(output, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
        read = [row["input_ids"] for row in loaded]
        assert sorted(read) == sorted(row.input_ids.tolist() for row in rows)
    dataset = PackedDataset(output)
    assert len(list(dataset)) == len(rows) == len(dataset.items_per_row())
    assert sorted(PackedSampler(dataset, rank=0, world_size=1)) == list(range(len(rows)))
    assert len(DocumentSource(output)) == sum(len(row.seq_lengths) for row in rows)
    for to in ("parquet", "megatron", "mds"):
        export(output, to, str(tmp_path / to))
    assert sum(len(pq.read_table(file)) for file in (tmp_path / "parquet").rglob("*.parquet")) == len(rows)


@pytest.mark.slow
def test_a_second_run_skips_everything(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    config = from_mapping(rehearsal_config(write_jsonl(documents()[:5])))
    done: list[tuple[str, Did]] = []
    for _ in range(2):
        mill(config, on_stage=lambda stage, found, did: found and done.append((stage, did)))
    assert done == [(stage, did) for did in (Did.RAN, Did.NOTHING) for stage in manifest.STAGES]


@pytest.mark.slow
def test_packing_again_from_one_ledger_gives_the_same_bytes(run: Callable[..., str], tmp_path: Path) -> None:
    ledger = {"path": str(tmp_path / "ledger")}
    first = hashes(run(ledger=ledger, output=str(tmp_path / "one")))
    rows = sum(1 for _ in _ledger(tmp_path))
    parallel = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    second = hashes(run(ledger=ledger, output=str(tmp_path / "two"), beam_args=parallel))
    assert first == second
    assert sum(1 for _ in _ledger(tmp_path)) == rows, "a generation was bought twice"


def _ledger(tmp_path: Path) -> Any:
    for path in (tmp_path / "ledger").glob("part-*.arrow"):
        yield from storage.read_records(str(path), LedgerRow)


@pytest.mark.slow
def test_a_ledger_part_cut_short_is_made_again_and_compaction_changes_nothing(
    run: Callable[..., str], tmp_path: Path
) -> None:
    ledger = {"path": str(tmp_path / "ledger"), "flush_rows": 10}
    first = hashes(run(ledger=ledger, output=str(tmp_path / "one")))
    parts = sorted((tmp_path / "ledger").glob("part-*.arrow"))
    assert parts  # how many depends on how fast rows come in
    parts[0].write_bytes(parts[0].read_bytes()[:200])
    assert hashes(run(ledger=ledger, output=str(tmp_path / "two"))) == first
    parts[0].unlink()
    rows = sum(1 for _ in _ledger(tmp_path))
    done = compact(str(tmp_path / "ledger"))
    assert (done.parts_after, done.rows_after) == (1, rows)
    assert hashes(run(ledger=ledger, output=str(tmp_path / "three"))) == first
    assert manifest.require(str(tmp_path / "three"), "augment").counts["generated"] == 0


def test_names_that_look_like_patterns(run: Callable[..., str], tmp_path: Path, byte_tokenizer: str) -> None:
    """Runs on one ledger buy each generation once, whatever it and the outputs are called."""
    ledger = str(tmp_path / "led[v1]")
    generated = []
    for name in ("out[1]", "out?x", "a::b/o"):
        output = run(ledger={"path": ledger}, output=str(tmp_path / name))
        generated.append(manifest.require(output, "augment").counts["generated"])
        assert source_texts(output, byte_tokenizer) == {d["id"]: d["text"] for d in documents()}
        assert verify(output).problems == []
    keys = Counter(row.key for row in read_ledger(ledger))
    assert generated == [len(keys), 0, 0] and set(keys.values()) == {1}


@pytest.mark.slow
def test_another_config_does_not_overwrite_by_accident(run: Callable[..., str], byte_tokenizer: str) -> None:
    output = run()
    before = hashes(output)
    with pytest.raises(RequestError, match=r"pack\.sequence_length: 512 → 256.*--replace"):
        run(pack={"sequence_length": 256, "num_shards": 2})
    assert hashes(output) == before
    run(pack={"sequence_length": 256, "num_shards": 2}, replace=True)
    assert hashes(output) != before
    assert source_texts(output, byte_tokenizer) == {d["id"]: d["text"] for d in documents()}


def test_bad_records_go_to_quarantine_with_their_reason(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    bad: list[Any] = [
        {"id": "good", "text": "good text"},
        {"id": "empty", "text": ""},
        {"text": "no id"},
        b"{broken",
        b'{"id": "x", "text": "\xff"}',
        b'{"id": "y", "text": "\\ud800"}',
    ]
    source = {"path": write_jsonl(bad), "id_field": "id", "max_quarantined": 0.9}
    config = from_mapping(rehearsal_config("") | {"source": source})
    done = mill(config, stages=["score"])["score"]
    refused = list(_records(config.output, done, "quarantine", Quarantined))
    assert Counter(r.reason for r in refused) == {
        "empty": 1,
        "missing_id": 1,
        "malformed_json": 2,
        "invalid_utf8": 1,
    }
    assert done.counts["documents_in"] == 6 == done.counts["documents"] + done.counts["quarantined"]
    assert all(r.origin.rpartition(":")[2].isdigit() and r.detail for r in refused)


@pytest.mark.slow
def test_what_the_corpus_repeats_is_not_hard(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    rng = random.Random(2)

    def words(count: int) -> str:
        return " ".join("".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(count))

    licence = words(40)
    source = write_jsonl([{"id": str(i), "text": f"{words(60)}\n\n{licence}"} for i in range(16)])

    def difficulties(**keys: Any) -> tuple[Manifest, dict[str, float]]:
        difficulty = {"scorer": "rehearsal", "threshold_nats": 0.5, **keys}
        config = from_mapping(rehearsal_config(source, difficulty=difficulty, output=str(tmp_path / str(len(keys)))))
        done = mill(config, stages=["score"])["score"]
        segments = list(_records(config.output, done, "segments", ScoredSegment))
        return done, {segment.segment_id: segment.difficulty_nats for segment in segments}

    _, alone = difficulties()
    done, remembered = difficulties(memory={"order": 4})
    last = [name for name in alone if f"{name.split('#')[0]}#{int(name.split('#')[1]) + 1}" not in alone]
    first = [name for name in alone if name.endswith("#0")]
    assert sum(remembered[name] for name in last) < 0.2 * sum(alone[name] for name in last)
    assert sum(remembered[name] for name in first) > 0.7 * sum(alone[name] for name in first)
    _, reused = difficulties(memory_path=done.facts["memory"]["url"], model=None)
    assert reused == remembered


@pytest.mark.slow
def test_equal_ids_are_told_apart(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    same = [{"id": "a", "text": "one"}, {"id": "a", "text": "two"}, {"id": "a", "text": "one"}]
    config = from_mapping(rehearsal_config(write_jsonl(same)))
    mill(config)
    assert sorted(source_texts(config.output, byte_tokenizer).values()) == ["one", "one", "two"]


@pytest.mark.slow
def test_a_document_of_five_megabytes_goes_through(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    rng = random.Random(1)
    line = " ".join(str(rng.random()) for _ in range(300)) + "\n"
    text = "".join(f"{i} {line}" for i in range(5_000_000 // len(line) + 1))
    config = from_mapping(
        rehearsal_config(
            write_jsonl([{"id": "big", "text": text}]),
            budget={
                "thinking_tokens_per_source_token": 0.01,
                "tiers": [{"name": "skip"}, {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 48}],
            },
        )
    )
    mill(config)
    assert source_texts(config.output, byte_tokenizer) == {"big": text}


@pytest.mark.slow
def test_source_and_output_may_be_in_memory(
    rehearsal_config: Callable[..., dict[str, Any]], byte_tokenizer: str
) -> None:
    lines = b"".join(json.dumps(document).encode() + b"\n" for document in documents())
    storage.write_bytes("memory://stages/source.jsonl", lines)
    config = from_mapping(rehearsal_config("memory://stages/*.jsonl", output="memory://stages-out"))
    mill(config)
    assert source_texts(config.output, byte_tokenizer) == {d["id"]: d["text"] for d in documents()}
    assert verify(config.output).problems == []


def test_everything_a_rehearsal_touches_says_so(finished: str) -> None:
    output = finished
    assert all(manifest.require(output, stage).rehearsal for stage in manifest.STAGES)
    assert "rehearsal: not for training" in Path(output, "README.md").read_text()
    assert verify(output).rehearsal


def test_a_full_disk_leaves_nothing_that_looks_finished(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the output folder should be")
    config = from_mapping(rehearsal_config(write_jsonl(documents()[:3]), output=str(blocked / "out")))
    with pytest.raises(MillError, match="blocked"):
        mill(config)
    assert blocked.read_text().startswith("a file")


def test_load_dataset_opens_the_output(run: Callable[..., str], tmp_path: Path) -> None:
    from datasets import load_dataset

    output = run(pack={"sequence_length": 128, "num_shards": 2, "validation_fraction": 0.3})
    loaded = load_dataset(output, cache_dir=str(tmp_path / "cache"))
    rows = shard_rows(output)
    assert set(loaded) == {"train", "validation"}
    assert sum(len(split) for split in loaded.values()) == len(rows)
    assert loaded["train"][0]["input_ids"] == rows[0].input_ids.tolist()
    assert json.loads(json.dumps(loaded["train"][0]["doc_ids"])) == rows[0].doc_ids
