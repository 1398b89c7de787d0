"""Diversity of kept thoughts: a bounded sample that merges in any order, what it finds, and what is rejected."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from augment.selection.alike.diversity import (
    MIN_THOUGHTS,
    DiversityConfig,
    DiversitySample,
    cautions,
    measure,
    near_copies,
    rank_of,
    shape_of,
)
from augment.selection.alike.repeats import NEAR_COPY, REPEATED_SHAPE, RepeatsConfig, offers, without_repeats
from augment.selection.alike.transforms import FindRepeats, MeasureDiversity
from augment.selection.candidates import JudgedSegment
from augment.selection.words import words_of
from pipelines.cli.summary import selection_warnings
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.minhash import signature
from sharding.records.types import Candidate
from sharding.storage import manifest
from tests.conftest import rehearsal_tree

DRAWN = random.Random(7)
NOUNS = [f"{a}{b}{c}" for a in "bdklm" for b in "aeiou" for c in ("ron", "lite", "gram", "ster")]


def candidate(number: int, text: str, tier: str = "deep", reasons: tuple[str, ...] = ()) -> Candidate:
    return Candidate(
        doc_id=f"doc{number}", segment_index=0, key=f"key{number}", sample=0, tier=tier, model="m", prompt="expert",
        closed="natural", finish_reason="stop", thought_tokens=9, text=text, input_ids=np.zeros(1, np.uint16),
        shown_tokens=1, kept=True, reasons=list(reasons),
    )  # fmt: skip


def template(number: int) -> str:
    one, other, third = (DRAWN.choice(NOUNS) for _ in range(3))
    return f"The passage is about the {one}, which shows that {other} may be {number} times as {third} as before."


def free(number: int) -> str:
    drawn = (DRAWN.choice(DRAWN.choice([NOUNS, ["the", "of", "which", "is", "and", "when"]])) for _ in range(40))
    return " ".join(drawn)


TEMPLATES = [candidate(number, template(number)) for number in range(60)]
FREE = [candidate(100 + number, free(number), tier="brief") for number in range(60)]
COPIES = [candidate(200 + number, "a " + FREE[0].text + f" {number}", tier="copied") for number in range(60)]
THOUGHTS = [*TEMPLATES, *FREE, *COPIES]


def sample_of(thoughts: list[Candidate], size: int = 4096) -> DiversitySample:
    sample = DiversitySample(size)
    for thought in thoughts:
        sample.add(thought)
    return sample


def measured(thoughts: list[Candidate], size: int = 4096) -> dict[str, Any]:
    sample = sample_of(thoughts, size)
    return measure(sample.thoughts, sample.sampled())


def test_shapes_are_skeletons() -> None:
    assert shape_of(words_of("The NodeVisitor class visits 12 nodes of a tree.")) == "the _ 0 _ of a _"
    assert len({shape_of(words_of(thought.text)) for thought in TEMPLATES}) == 1
    assert shape_of([]) == ""


def test_what_is_alike_is_found() -> None:
    found = measured(THOUGHTS)
    tiers = found["tiers"]
    assert found["thoughts"] == found["sampled"] == 180
    assert tiers["deep"]["opening_share"] == tiers["deep"]["shape_share"] == 1.0
    assert tiers["deep"]["opening"] == "the passage is about"
    assert tiers["brief"]["opening_share"] < 0.1 and tiers["brief"]["shape_share"] < 0.1
    assert tiers["copied"]["near_copy_share"] == 1.0 and tiers["deep"]["near_copy_share"] < 0.2
    assert {"text": "the passage is about", "share": 0.3333} in found["openings"]["top"][:2]


def test_a_caution_for_each_kind_and_none_for_few() -> None:
    said = list(cautions(measured(THOUGHTS), DiversityConfig()))
    assert [line.split(" of the")[0] for line in said] == ["100%"] * 5  # opening and shape of two tiers, and the copies
    assert any("tier deep begin with 'the passage is about'" in line for line in said)
    assert any("tier copied are near-copies" in line for line in said) and not any("brief" in line for line in said)
    assert not list(cautions(measured(TEMPLATES[: MIN_THOUGHTS - 1]), DiversityConfig()))
    none = DiversityConfig(max_opening_share=1, max_shape_share=1, max_near_copy_share=1)
    assert not list(cautions(measured(THOUGHTS), none)) and not list(cautions(None, DiversityConfig()))


def test_near_copies_are_counted_as_by_brute_force() -> None:
    signatures = [signature(words_of(thought.text)) for thought in THOUGHTS]
    brute = [sum(float(np.mean(one == other)) >= 0.8 for other in signatures) - 1 for one in signatures]
    assert near_copies(signatures).tolist() == brute and max(brute) >= 59
    assert near_copies([]).tolist() == []


@pytest.mark.parametrize("size", [4, 30, 4096])
def test_the_sample_is_the_same_in_any_order_and_bounded(size: int) -> None:
    expected = sorted(map(rank_of, THOUGHTS))[:size]
    for seed in range(3):
        shuffled = random.Random(seed).sample(THOUGHTS, len(THOUGHTS))
        whole = sample_of(shuffled, size)
        merged = DiversitySample(size)
        for start in range(0, len(shuffled), 50):
            merged.merge(sample_of(shuffled[start : start + 50], size))
        for sample in (whole, merged):
            assert [thought.rank for thought in sample.sampled()] == expected
            assert sample.thoughts == 180 and len(sample._sampled) < 2 * size
        assert measure(180, whole.sampled()) == measure(180, merged.sampled())


def test_pairs_of_a_sample_tell_of_the_corpus() -> None:
    """Every thought has one near-copy, and a sample of a quarter hardly ever has both."""
    corpus = [candidate(number, free(number // 2) if number % 2 == 0 else "") for number in range(1200)]
    corpus = [
        thought if number % 2 == 0 else candidate(number, corpus[number - 1].text)
        for number, thought in enumerate(corpus)
    ]
    found = measured(corpus, 300)["near_copies"]
    assert found["share"] < 0.4 and 0.6 < found["per_thought"] < 1.5


# --- repeats ----------------------------------------------------------------------------------------------------------


def segments(thoughts: list[Candidate]) -> list[JudgedSegment]:
    return [
        JudgedSegment(
            doc_id=one.doc_id, segment_index=0, document=one.doc_id, tier=one.tier, trace_tokens=9, valued=False,
            source_text="", continuation="", candidates=[one],
        )
        for one in thoughts
    ]  # fmt: skip


def cuts_of(given: list[JudgedSegment], config: RepeatsConfig) -> dict[str, dict[int, int]]:
    """Without Beam."""
    cuts: dict[str, dict[int, int]] = {}
    for reason, limit in config.limits.items():
        ranks: dict[int, list[int]] = {}
        for number, rank in (pair for segment in given for pair in offers(segment, reason)):
            ranks.setdefault(number, []).append(rank)
        cuts[reason] = {number: sorted(found)[limit - 1] for number, found in ranks.items() if len(found) > limit}
    return cuts


def test_the_first_by_hash_stay() -> None:
    rejected = candidate(999, TEMPLATES[0].text, reasons=("loop",))
    given = segments(DRAWN.sample([*THOUGHTS, rejected], 181))
    config = RepeatsConfig(shapes_at_most=5, near_copies_at_most=3)
    cuts = cuts_of(given, config)
    with beam.Pipeline() as pipeline:
        found = pipeline | beam.Create(given) | FindRepeats(config)
        assert_that(found, equal_to(list(cuts.items())))
    kept: dict[str, list[Candidate]] = {}
    for segment in given:
        (judged,) = without_repeats(segment, cuts).candidates
        kept.setdefault(judged.reasons[0] if judged.reasons else judged.tier, []).append(judged)
    firsts = sorted(TEMPLATES, key=rank_of)[:5]
    assert {one.doc_id for one in kept["deep"]} <= {one.doc_id for one in firsts} and len(kept["deep"]) >= 3
    assert len(kept["brief"]) >= 55, "free texts stay, but for what the copies are of"
    assert 0 < len(kept["copied"]) <= 5
    assert len(kept["loop"]) == 1 and len(kept[REPEATED_SHAPE]) >= 100
    assert set(kept) <= {"deep", "brief", "copied", "loop", REPEATED_SHAPE, NEAR_COPY}


def test_without_limits_nothing_is_looked_at() -> None:
    with beam.Pipeline() as pipeline:
        for label, config in (("none", None), ("empty", RepeatsConfig())):
            cuts = pipeline | f"Given {label}" >> beam.Create(segments(TEMPLATES)) | label >> FindRepeats(config)
            assert_that(cuts, equal_to([]), label=f"No cuts {label}")


def test_the_transform_measures_what_the_sample_does() -> None:
    with beam.Pipeline() as pipeline:
        found = pipeline | beam.Create(THOUGHTS) | MeasureDiversity()
        assert_that(found, equal_to([measured(THOUGHTS)]))


@pytest.mark.slow
def test_a_run_measures_and_rejects(tmp_path: Path, byte_tokenizer: str) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(f'{{"id": "{i}", "text": "{f"text {i} says {i * 7} " * 30}"}}\n' for i in range(6)))
    tree = rehearsal_tree(tmp_path, byte_tokenizer, str(source))
    stages = ("score", "augment", "select")
    mill(from_mapping(tree), stages=stages)
    before = manifest.require(tree["output"], "select")
    assert before.facts["diversity"]["thoughts"] == before.counts["kept"] > 3
    real = msgspec.structs.replace(before, rehearsal=False, facts={**before.facts, "diversity": measured(THOUGHTS)})
    assert sum("of tier deep" in said for said in selection_warnings(real, 0.0)) == 2
    assert not selection_warnings(msgspec.structs.replace(real, rehearsal=True), 0.0), (
        "made-up traces are what they are"
    )
    loud = {**tree, "select": {"diversity": {"max_opening_share": 0.0}}}
    assert mill(from_mapping(loud), stages=("select",))["select"] == before, "what is only said selects nothing anew"
    limited = {**tree, "select": {"repeats": {"shapes_at_most": 1, "near_copies_at_most": 1}}}
    after = mill(from_mapping(limited), stages=("select",), replace=True)["select"]
    assert after.counts["candidates"] == before.counts["candidates"]
    assert msgspec.json.encode(after.facts["diversity"]) and after.counts["kept"] <= before.counts["kept"]
