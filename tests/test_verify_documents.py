"""One document against its records: what packing makes of it is never wrong, and any change to it always is."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.verify.documents import FoundItem, Packing, compare
from pipelines.verify.thoughts import kept_thoughts
from sharding.beam.part_join import JoinedDocument
from sharding.errors import MillError
from sharding.packing import mixing
from sharding.packing.config import PackConfig
from sharding.packing.laying_out import join_thoughts
from sharding.packing.layout import Delimiters, lay_out, lay_out_plain
from sharding.records.rows import Item
from sharding.records.types import Candidate, ScoredDocument

END = 7_000
LAYOUTS = ("after_document", "after_segment", "before_segment", "at_hard_span")


def candidate(segment_index: int, sample: int, input_ids: np.ndarray, shown_tokens: int) -> Candidate:
    return Candidate(
        doc_id="d", segment_index=segment_index, key=f"{segment_index}-{sample}", sample=sample, tier="t", model="m",
        prompt="p", closed="natural", finish_reason="stop", thought_tokens=len(input_ids), text="", kept=True,
        input_ids=input_ids, shown_tokens=shown_tokens, reasons=[],
    )  # fmt: skip


def joined(
    input_ids: np.ndarray, starts: np.ndarray, thoughts: list[Candidate], *, contaminated: bool = False
) -> JoinedDocument:
    nothing = np.empty(0, np.float16)
    scored = ScoredDocument(
        doc_id="d", segment_starts=starts, input_ids=input_ids, surprisal_nats=nothing, entropy_nats=nothing,
        memory_nats=nothing, segment_difficulty_nats=nothing, source="web",
    )  # fmt: skip
    return JoinedDocument(scored, {"kept": thoughts, "contaminated": ["it is"] * contaminated})


def a_document(seed: int, alphabet: int, longest_thought: int) -> JoinedDocument:
    """Some segments, a few of them empty or with several thoughts; few different tokens, so that many are alike."""
    rng = random.Random(seed)
    lengths = [rng.choice((0, 1, 2, 9, 40)) for _ in range(rng.randrange(1, 6))]
    starts = np.cumsum([0, *lengths[:-1]])
    thoughts: list[Candidate] = []
    for index, length in enumerate(lengths):
        shown = rng.randrange(length + 1)
        for sample in range(rng.choice((0, 0, 1, 3))):
            ids = np.array([rng.randrange(alphabet) for _ in range(rng.randrange(longest_thought))], np.uint16)
            thoughts.append(candidate(index, sample, ids, shown))
    ids = np.array([rng.randrange(alphabet) for _ in range(sum(lengths))], np.uint16)
    return joined(ids, starts, thoughts)


def test_a_thought_of_a_segment_that_is_not_there_is_told() -> None:
    ids = np.arange(9, dtype=np.uint16)
    document = joined(ids, np.array([0, 4]), [candidate(2, 0, ids[:3], 0)])
    with pytest.raises(MillError, match="'d' has a kept thought of segment 2, and 2 segments"):
        kept_thoughts(document)


def packed(document: JoinedDocument, layout: Any, wrap: int, pack: PackConfig) -> tuple[list[FoundItem], Packing, Any]:
    """What the pack stage makes of the document, and how it was packed."""
    delimiters = Delimiters(
        *(np.full(wrap, 6_000 + i, np.uint16) for i in range(2)), document_end=np.array([END], np.uint16)
    )
    scored, thoughts = document.scored, document.beside["kept"]
    share = mixing.share_of("d", "web", pack, contaminated=bool(document.beside["contaminated"]))
    if share.raw or not thoughts:
        items, counts = lay_out_plain(
            "d", scored.input_ids, scored.segment_starts, delimiters, pack.sequence_length, np.dtype(np.uint16)
        )
    else:
        segments = join_thoughts("d", list(scored.segments()), thoughts)
        items, counts = lay_out("d", segments, layout, delimiters, pack.sequence_length, np.dtype(np.uint16))
    found = [
        FoundItem(item=item, shard=f"data/train-{copy:05d}-of-00004.arrow", row=row)
        for copy in range(share.copies)
        for row, item in enumerate(items)
    ]
    packing = Packing(
        folder="out",
        shards=(),
        config=pack,
        layout=layout,
        rows_are_left_out=False,
        thoughts_are_cut=counts.thoughts_cut > 0,
        thoughts_are_dropped=counts.thoughts_dropped > 0,
        document_end=(END,),
    )
    return found, packing, counts


SHAPES = {
    "seed": st.integers(0, 10**6),
    "layout": st.sampled_from(LAYOUTS),
    "wrap": st.sampled_from((0, 1)),
    "length": st.sampled_from((16, 24, 64)),
    "alphabet": st.sampled_from((2, 5_000)),
    "weight": st.sampled_from((0.5, 1.0, 2.5, 3.0)),
    "raw": st.sampled_from((0.0, 0.3)),
}


@given(**SHAPES, pack_seed=st.integers(0, 50))
def test_what_packing_makes_is_never_wrong(
    seed: int, layout: str, wrap: int, length: int, alphabet: int, weight: float, raw: float, pack_seed: int
) -> None:
    document = a_document(seed, alphabet, 30)
    pack = PackConfig(sequence_length=length, seed=pack_seed, source_weights={"web": weight}, raw_fraction=raw)
    items, packing, laid_out = packed(document, layout, wrap, pack)
    counts = Counter[str]()
    assert compare(document, items, packing, "part", counts) == []
    copies = len({item.shard for item in items}) if items else 0
    assert counts["thoughts"] == copies * laid_out.thoughts
    assert counts["thoughts_cut"] == copies * laid_out.thoughts_cut
    # With rows left out any of the items may be missing, and nothing else is allowed.
    kept = [item for item in items if random.Random(f"{seed} {item.shard} {item.row}").random() < 0.6]
    assert compare(document, kept, dataclasses.replace(packing, rows_are_left_out=True), "part", Counter()) == []


@given(**SHAPES, rows_are_left_out=st.booleans())
def test_a_change_is_always_told(
    seed: int, layout: str, wrap: int, length: int, alphabet: int, weight: float, raw: float, rows_are_left_out: bool
) -> None:
    document = a_document(seed, alphabet, 8)
    pack = PackConfig(sequence_length=length, source_weights={"web": weight}, raw_fraction=raw)
    items, packing, laid_out = packed(document, layout, wrap, pack)
    if not items:
        return
    copies = len({item.shard for item in items})
    packing = dataclasses.replace(packing, rows_are_left_out=rows_are_left_out)
    rng = random.Random(seed)
    at = rng.randrange(len(items))

    def said(changed: list[FoundItem]) -> bool:
        counts = Counter[str]()
        problems = compare(document, changed, packing, "part", counts)
        # Where thoughts were dropped, a missing one shows in the sum over all documents.
        return problems != [] or (packing.thoughts_are_dropped and counts["thoughts"] != copies * laid_out.thoughts)

    def with_item(item: Item) -> list[FoundItem]:
        return [*items[:at], msgspec.structs.replace(items[at], item=item), *items[at + 1 :]]

    item = items[at].item
    ids = item.input_ids.copy()
    # Source, thoughts, and the end: whatever token is another one.
    place = rng.choice([p for p in range(len(ids)) if item.token_type[p] != 3 or ids[p] == END])
    ids[place] = 5_999
    assert said(with_item(msgspec.structs.replace(item, input_ids=ids)))
    assert said(with_item(msgspec.structs.replace(item, source_start=item.source_start + 1)))
    assert said([*items, items[at]])
    if not rows_are_left_out:
        assert said([*items[:at], *items[at + 1 :]])
    if (item.token_type == 2).any() and not packing.thoughts_are_cut:
        types = item.token_type.copy()
        types[np.flatnonzero(types == 2)[-1]] = 3
        assert said(with_item(msgspec.structs.replace(item, token_type=types)))


@pytest.mark.parametrize(("weight", "contaminated", "why"), [(0.0, False, "weight"), (1.0, True, "benchmark")])
def test_a_document_that_should_be_left_out(weight: float, contaminated: bool, why: str) -> None:
    document = a_document(5, 5_000, 8)
    items, packing, _ = packed(document, "after_segment", 1, PackConfig(sequence_length=64))
    assert items and compare(document, items, packing, "part", Counter()) == []
    scored = document.scored
    document = joined(scored.input_ids, scored.segment_starts, document.beside["kept"], contaminated=contaminated)
    packing = dataclasses.replace(packing, config=PackConfig(sequence_length=64, source_weights={"web": weight}))
    (problem,) = compare(document, items, packing, "part", Counter())
    assert "should be in no shard" in problem.what and why in problem.what


def test_a_raw_document_has_no_thoughts() -> None:
    document = next(d for d in (a_document(seed, 5_000, 8) for seed in range(99)) if len(d.beside["kept"]) > 2)
    items, packing, _ = packed(document, "after_segment", 1, PackConfig(sequence_length=64))
    packing = dataclasses.replace(packing, config=PackConfig(sequence_length=64, raw_fraction=1.0))
    problems = compare(document, items, packing, "part", Counter())
    assert problems and all("is not one of the 0 kept" in problem.what for problem in problems)


def test_a_thought_beside_another_segment_is_told() -> None:
    """Two segments change their thoughts: the order of tokens alone would not show it with one of them left."""
    thought = candidate(1, 0, np.array([4, 5, 6], np.uint16), 3)
    ids = np.arange(100, 106, dtype=np.uint16)
    document = joined(ids, np.array([0, 3]), [thought])
    moved = joined(ids, np.array([0, 3]), [msgspec.structs.replace(thought, segment_index=0)])
    items, packing, _ = packed(moved, "before_segment", 1, PackConfig(sequence_length=64))
    (problem,) = compare(document, items, packing, "part", Counter())
    assert "a thought of 3 tokens is not beside its segment" in problem.what
