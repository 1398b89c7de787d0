"""Mixing: how often each document is in the corpus, what is cut and what counts in the loss."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import accounts
from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.packing import mixing, order
from sharding.packing.balance import Balance, cut_rows
from sharding.packing.best_fit import best_fit_decreasing, pack_rows
from sharding.packing.config import PackConfig
from sharding.packing.laying_out import segment_tokens
from sharding.packing.recovery import document_source, items_of, thoughts_of
from sharding.records.rows import Item, Row, TokenType
from sharding.records.types import Candidate, ScoredSegment
from sharding.shards.dataset import PackedDataset
from sharding.shards.rows import IGNORED_LABEL, LOSS_MASKS, loss_mask, split_of
from sharding.storage import manifest
from sharding.storage.manifest import Manifest
from tests.conftest import rehearsal_tree
from tests.test_stages import hashes, shard_rows

CAPACITY = 24

# --- how often --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "allowed"), [(0, {0}), (0.5, {0, 1}), (1, {1}), (1.5, {1, 2}), (2, {2}), (3.25, {3, 4})]
)
def test_copies_are_the_weight_on_average(weight: float, allowed: set[int]) -> None:
    copies = [order.copies_of(0, f"doc-{i}", weight) for i in range(4_000)]
    assert set(copies) == allowed
    assert abs(np.mean(copies) - weight) < 0.03


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_a_larger_weight_keeps_what_a_smaller_one_does(doc_id: str, one: float, other: float) -> None:
    fewer, more = sorted((one, other))
    assert order.copies_of(5, doc_id, fewer) <= order.copies_of(5, doc_id, more)


def test_copies_stand_elsewhere_and_the_first_where_it_always_stood() -> None:
    assert order.order_key(7, "a", 0) == order.order_key(7, "a")
    assert len({order.order_key(7, "a", copy) for copy in range(50)}) == 50
    assert order.copies_of(1, "doc-1", 0.5) != order.copies_of(2, "doc-1", 0.5) or any(
        order.copies_of(1, f"doc-{i}", 0.5) != order.copies_of(2, f"doc-{i}", 0.5) for i in range(20)
    )


@given(
    st.lists(st.tuples(st.integers(1, CAPACITY), st.sampled_from([None, "a", "b", "c"])), max_size=60),
)
def test_items_that_are_kept_apart_share_no_bin(items: list[tuple[int, str | None]]) -> None:
    lengths, labels = [length for length, _ in items], [label for _, label in items]
    bins = best_fit_decreasing(lengths, CAPACITY, labels)
    assert sorted(index for indices in bins for index in indices) == list(range(len(items)))
    for indices in bins:
        assert sum(lengths[index] for index in indices) <= CAPACITY
        in_bin = [labels[index] for index in indices if labels[index]]
        assert len(in_bin) == len(set(in_bin))
    # A bin is opened only where no other would do: all its items refuse, or don't fit, an earlier bin.
    if not any(labels):
        assert bins == best_fit_decreasing(lengths, CAPACITY)


@given(st.lists(st.tuples(st.integers(1, CAPACITY), st.integers(0, 3)), min_size=1, max_size=30), st.integers(1, 40))
def test_copies_of_a_document_share_no_row(documents: list[tuple[int, int]], window_items: int) -> None:
    items = [
        Item(
            doc_id=f"d{number}",
            source_start=0,
            input_ids=np.full(length, number, np.uint16),
            token_type=np.full(length, 1, np.uint8),
            copy=copy,
        )
        for number, (length, copies) in enumerate(documents)
        for copy in range(copies)
    ]
    rows = list(pack_rows(order.sort_items(items, 3), CAPACITY, window_items=window_items))
    assert Counter(doc_id for row in rows for doc_id in row.doc_ids) == Counter(item.doc_id for item in items)
    assert all(len(set(row.doc_ids)) == len(row.doc_ids) for row in rows)


# --- how much ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 80))
def test_a_cut_leaves_equal_shards_of_rows_that_are_there(counts: list[int], max_rows: int) -> None:
    balance = Balance(counts)
    cut = cut_rows(balance, max_rows)
    assert sum(cut.kept) == min(sum(counts), max_rows)
    assert all(cut.rows_per_shard - 1 <= kept <= cut.rows_per_shard for kept in cut.kept)
    there = Counter(balance.place(shard, index) for shard, count in enumerate(counts) for index in range(count))
    # Every row that is kept is there, at the beginning of its shard.
    assert all(there[shard, position] == 1 for shard, kept in enumerate(cut.kept) for position in range(kept))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_without_a_cut_all_rows_stay(counts: list[int]) -> None:
    balance = Balance(counts)
    cut = cut_rows(balance, None)
    assert cut == cut_rows(balance, sum(counts))
    assert cut.rows_per_shard == balance.rows_per_shard
    assert {s for s, kept in enumerate(cut.kept) if kept < cut.rows_per_shard} == set(balance.short_shards)


# --- the account ------------------------------------------------------------------------------------------------------


def test_what_becomes_of_a_document() -> None:
    config = PackConfig(sequence_length=64, source_weights={"half": 0.0, "twice": 2.0}, raw_fraction=1.0)
    cases = {
        ("twice", True): mixing.Share(0, why_not="contaminated"),
        ("half", True): mixing.Share(0, why_not="contaminated"),
        ("half", False): mixing.Share(0, why_not="left_out"),
        ("twice", False): mixing.Share(2, raw=True),
        ("other", False): mixing.Share(1, raw=True),
    }
    for (source, contaminated), share in cases.items():
        assert mixing.share_of("d", source, config, contaminated=contaminated) == share
    assert mixing.share_counts(mixing.Share(3), 10, 2) == {
        "document_copies": 2,
        "source_tokens_copied": 20,
        "thoughts_copied": 4,
        "documents_raw": 0,
        "thoughts_left_out_of_raw": 0,
    }
    counted = {name for share in cases.values() for name in mixing.share_counts(share, 1, 1)}
    assert counted <= set(mixing.COUNTS)


@pytest.mark.parametrize(
    ("scored", "kept", "counts", "said"),
    [
        (100, 3, {"tokens_source": 100, "thoughts": 3}, None),
        (100, 3, {"tokens_source": 99, "thoughts": 3}, "99 tokens_source is not 100 score/source_tokens"),
        (100, 3, {"tokens_source": 100, "thoughts": 2}, "2 thoughts is not 3 select/kept"),
        (100, 3, {"tokens_source": 100, "thoughts": 2, "thoughts_dropped": 1}, None),
        (100, 3, {"tokens_source": 90, "source_tokens_contaminated": 10, "thoughts": 3}, None),
        (100, 3, {"tokens_source": 130, "source_tokens_copied": 30, "thoughts": 4, "thoughts_copied": 1}, None),
        (100, 3, {"tokens_source": 60, "rows_left_out_tokens_source": 40, "thoughts": 3}, None),
        (
            100,
            3,
            {"tokens_source": 60, "rows_left_out_tokens_source": 41, "thoughts": 3},
            r"60 tokens_source is not 100 score/source_tokens - 41 rows_left_out_tokens_source",
        ),
    ],
)
def test_the_account_is_exact(scored: int, kept: int, counts: dict[str, int], said: str | None) -> None:
    manifests = {
        stage: Manifest(
            stage=stage, format=1, fingerprint="", config={}, inputs={}, files={}, counts=numbers, facts={},
            rehearsal=False, elapsed_s=0.0,
        )
        for stage, numbers in (("score", {"source_tokens": scored}), ("select", {"kept": kept}), ("pack", counts))
    }  # fmt: skip
    if said is None:
        accounts.check("pack", manifests)
    else:
        with pytest.raises(MillError, match=said):
            accounts.check("pack", manifests)


def test_thoughts_that_saw_different_amounts_are_not_put_in_one_place() -> None:
    segment = ScoredSegment(
        doc_id="d",
        segment_index=0,
        num_segments=1,
        token_start=0,
        input_ids=np.arange(9, dtype=np.uint16),
        surprisal_nats=np.zeros(9, np.float16),
        entropy_nats=np.zeros(9, np.float16),
        memory_nats=np.zeros(0, np.float16),
        difficulty_nats=0.0,
    )
    made = [_candidate(shown_tokens=shown) for shown in (4, 4, 5)]
    assert segment_tokens(segment, made[:2]).shown_tokens == 4
    assert segment_tokens(segment, []).thoughts == []
    with pytest.raises(AssertionError, match=r"'d#0' has thoughts behind \[4, 5\] of its tokens"):
        segment_tokens(segment, made)


def _candidate(**fields: Any) -> Candidate:
    return Candidate(
        **{
            "doc_id": "d",
            "segment_index": 0,
            "key": "k",
            "sample": 0,
            "tier": "t",
            "model": "m",
            "prompt": "p",
            "closed": "natural",
            "finish_reason": "stop",
            "thought_tokens": 2,
            "text": "x",
            "kept": True,
            "input_ids": np.arange(2, dtype=np.uint16),
            "shown_tokens": 0,
            "reasons": [],
            **fields,
        }
    )


# --- whole runs -------------------------------------------------------------------------------------------------------

SOURCES = ("plain", "twice", "some", "none")


def texts() -> dict[str, list[dict[str, str]]]:
    rng = random.Random(4)
    words = [f"word{rng.randrange(700)}" for _ in range(4_000)]
    return {
        name: [{"id": f"{name}-{i}", "text": " ".join(rng.choices(words, k=rng.randrange(3, 160)))} for i in range(14)]
        for name in SOURCES
    }


def config_in(folder: Path, tokenizer: str, **sections: Any) -> MillConfig:
    sources = []
    for name, documents in texts().items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(document) + "\n" for document in documents))
        sources.append({"name": name, "path": str(path), "id_field": "id"})
    tree = rehearsal_tree(folder, tokenizer, "", **sections)
    del tree["source"]
    return from_mapping({**tree, "sources": sources})


MIXED = {
    "sequence_length": 128,
    "num_shards": 3,
    "validation_fraction": 0.2,
    "raw_fraction": 0.3,
    "source_weights": {"twice": 2, "some": 0.5, "none": 0},
}


def mill_mixed(folder: Path, tokenizer: str, **pack: Any) -> tuple[MillConfig, Manifest]:
    config = config_in(folder, tokenizer, pack={**MIXED, **pack}, layout="at_hard_span")
    return config, mill(config)["pack"]


@pytest.mark.slow
def test_sources_are_weighed(tmp_path: Path, byte_tokenizer: str) -> None:
    config, packed = mill_mixed(tmp_path, byte_tokenizer)
    rows = shard_rows(config.output)
    items = [item for row in rows for item in items_of(row)]
    times = Counter(item.doc_id for item in items if item.source_start == 0)
    expected = {
        d["id"]: order.copies_of(0, d["id"], weight)
        for name, weight in (("plain", 1), ("twice", 2), ("some", 0.5), ("none", 0))
        for d in texts()[name]
    }
    assert times == Counter(expected)
    assert 0 < sum(times[d["id"]] for d in texts()["some"]) < 14
    assert packed.counts["documents_left_out"] == sum(count == 0 for count in expected.values())
    assert packed.counts["document_copies"] == 14
    assert packed.counts["documents"] + packed.counts["documents_left_out"] == 56
    # No two copies of a document are in one sequence; together they give it back.
    for row in rows:
        twice = [doc_id for doc_id in row.doc_ids if doc_id.startswith("twice")]
        assert len(set(twice)) == len(twice)
    assert source_texts(items, byte_tokenizer) == {
        d["id"]: d["text"] for name in SOURCES for d in texts()[name] if expected[d["id"]]
    }
    assert [str(problem) for problem in verify(config.output, deep=True).problems] == []
    raw = {doc_id for doc_id in expected if order.is_raw(0, doc_id, 0.3)}
    assert {item.doc_id for item in items if thoughts_of(item)}.isdisjoint(raw)


def source_texts(items: list[Item], tokenizer: str) -> dict[str, str]:
    by_document: dict[str, list[Item]] = {}
    for item in items:
        by_document.setdefault(item.doc_id, []).append(item)
    decode = load_tokenizer(tokenizer).decode
    return {doc_id: decode(document_source(pieces)) for doc_id, pieces in by_document.items()}


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["none", "own"])
def test_exact_copies_are_in_one_split(tmp_path: Path, byte_tokenizer: str, ids: str) -> None:
    wanted = {f"Text {i}: {' '.join(str(i * j) for j in range(2 + 3 * i))}." for i in range(20)}
    source = tmp_path / "source.jsonl"
    copies = [{"id": f"{text[:8]}-{copy}", "text": text} for text in sorted(wanted) for copy in range(3)]
    source.write_text("".join(json.dumps(document) + "\n" for document in copies))
    pack = {"sequence_length": 128, "num_shards": 2, "validation_fraction": 0.5}
    tree = rehearsal_tree(tmp_path, byte_tokenizer, str(source), pack=pack)
    tree["source"] = {"path": str(source)} | ({"id_field": "id"} if ids == "own" else {})
    config = from_mapping(tree)
    packed = mill(config)["pack"]
    assert (packed.counts["documents_train"] + packed.counts["documents_validation"]) == 60
    items: dict[str, list[Item]] = {"train": [], "validation": []}
    for entry in packed.files["shards"]:
        for row in storage.read_records(storage.join(config.output, entry.name), Row):
            items[split_of(entry)] += items_of(row)
    found = {split: set(source_texts(of_split, byte_tokenizer).values()) for split, of_split in items.items()}
    assert found["train"] | found["validation"] == wanted
    assert found["train"] & found["validation"] == set()
    assert found["validation"] == {text for text in wanted if order.split_of(text, 0.5) == "validation"}
    assert [str(problem) for problem in verify(config.output, deep=True).problems] == []


@pytest.mark.slow
def test_the_mix_is_the_same_on_two_workers(tmp_path: Path, byte_tokenizer: str) -> None:
    ledger = {"path": str(tmp_path / "ledger")}
    found = []
    for name, beam_args in (
        ("one", ()),
        ("two", ("--direct_num_workers=2", "--direct_running_mode=multi_processing")),
    ):
        (tmp_path / name).mkdir()
        pack = {**MIXED, "max_rows": {"train": 50}, "loss_mask": "source_only"}
        config = config_in(tmp_path / name, byte_tokenizer, pack=pack, ledger=ledger)
        mill(config, beam_args=beam_args)
        found.append(hashes(config.output))
    assert found[0] == found[1]


@pytest.mark.slow
def test_thoughts_stand_where_their_generator_stopped(tmp_path: Path, byte_tokenizer: str) -> None:
    config = config_in(tmp_path, byte_tokenizer, layout="at_hard_span")
    done = mill(config)
    starts, kept = {}, {}
    for url in manifest.file_urls(config.output, done["score"], "segments"):
        for segment in storage.read_records(url, ScoredSegment):
            starts[segment.segment_id] = segment.token_start
    for url in manifest.file_urls(config.output, done["select"], "kept"):
        for thought in storage.read_records(url, Candidate):
            kept[thought.doc_id, thought.input_ids.tobytes()] = starts[thought.segment_id] + thought.shown_tokens
    found = {
        (item.doc_id, thought.input_ids.tobytes()): thought.place
        for row in shard_rows(config.output)
        for item in items_of(row)
        for thought in thoughts_of(item)
    }
    assert found == kept and len(set(found.values())) > 5


@pytest.mark.slow
@pytest.mark.parametrize("action", ["remove", "mark"])
def test_contaminated_documents_are_left_out_on_request(tmp_path: Path, byte_tokenizer: str, action: str) -> None:
    long = [d for name in ("plain", "none") for d in texts()[name] if len(d["text"].split()) > 40]
    hit = {document["id"]: document["text"] for document in (long[0], long[-1])}
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps({"question": text[:150]}) + "\n" for text in hit.values()))
    config = config_in(
        tmp_path,
        byte_tokenizer,
        select={"decontaminate": {"paths": [str(quiz)], "action": action}},
        pack={**MIXED, "source_weights": {"none": 0}},
    )
    done = mill(config)
    tokens: Counter[str] = Counter()
    for url in manifest.file_urls(config.output, done["score"], "segments"):
        for segment in storage.read_records(url, ScoredSegment, ("doc_id", "input_ids")):
            tokens[segment.doc_id] += len(segment.input_ids)
    packed = done["pack"].counts
    there = {doc_id for row in shard_rows(config.output) for doc_id in row.doc_ids}
    weighed_out = {d["id"] for d in texts()["none"]}
    removed = set(hit) if action == "remove" else set()
    assert there == set(tokens) - weighed_out - removed
    # One document has both reasons; it counts once.
    assert packed["documents_contaminated"] == len(removed)
    assert packed["documents_left_out"] == len(weighed_out - removed)
    assert packed["source_tokens_contaminated"] == sum(tokens[doc_id] for doc_id in removed)
    assert packed["tokens_source"] == sum(tokens[doc_id] for doc_id in there)
    assert [str(problem) for problem in verify(config.output, deep=True).problems] == []


def test_a_source_that_is_not_there_has_no_weight(tmp_path: Path, byte_tokenizer: str) -> None:
    with pytest.raises(RequestError, match=r"pack\.source_weights\.web: .*'plain', 'twice', 'some', 'none'"):
        config_in(tmp_path, byte_tokenizer, pack={**MIXED, "source_weights": {"web": 2}})
    with pytest.raises(RequestError, match=r"pack\.source_weights\.plain"):
        config_in(tmp_path, byte_tokenizer, pack={**MIXED, "source_weights": {"plain": -1}})


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", LOSS_MASKS)
def test_the_loss_mask_is_that_of_its_policy(tmp_path: Path, byte_tokenizer: str, policy: str) -> None:
    config, packed = mill_mixed(tmp_path, byte_tokenizer, loss_mask=policy)
    counted = 0
    for url in manifest.file_urls(config.output, packed, "shards"):
        for batch in storage.read_batches(url):
            types = batch.column("token_type").flatten().to_numpy()
            assert ("loss_mask" in batch.schema.names) == (policy != "all")
            if policy != "all":
                kind = batch.schema.field("loss_mask").type
                assert (kind.value_type, kind.list_size) == (pa.bool_(), 128)
                mask = batch.column("loss_mask").flatten().to_numpy(zero_copy_only=False)
                assert mask.tolist() == loss_mask(types, policy).tolist()  # type: ignore[arg-type]
                assert not mask[types == TokenType.PADDING].any()
                counted += mask.sum()
    for row in PackedDataset(config.output):
        kinds = set(np.unique(row["token_type"][row["labels"] != IGNORED_LABEL]).tolist())
        assert TokenType.PADDING not in kinds
        assert policy != "source_only" or kinds <= {TokenType.SOURCE}
        assert policy != "thoughts_only" or kinds <= {TokenType.THOUGHT}
    assert bool(counted) == (policy != "all")
    assert [str(problem) for problem in verify(config.output).problems] == []
    if policy != "all":
        assert f"`{policy}`" in Path(config.output, "README.md").read_text()
