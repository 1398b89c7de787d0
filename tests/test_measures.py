"""What a token's difficulty is: the three measures, from the config to what is asked of a generator and shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from augment.ledger.reading import read_ledger
from difficulty import DifficultyConfig, score_texts
from difficulty.surprisal import Measure, difficulty_nats, measure_of, token_difficulty_nats
from pipelines.documents.blocks import Unit
from pipelines.documents.terminal import bracketed, coloured
from pipelines.joints import Choices, Holdback, holdback_of
from pipelines.report import room
from pipelines.run import mill
from pipelines.scorer_identity import difficulty_section
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Request, ScoredSegment
from sharding.storage import manifest
from tests.test_stages import documents

NOTHING = np.empty(0, np.float16)


@pytest.mark.parametrize(
    ("measure", "memory", "expected"),
    [
        ("surprisal", None, [9.0, 4.0, 1.0]),
        ("excess", None, [9.0, 4.0, 1.0]),
        ("beyond_entropy", None, [1.0, 3.5, 0.0]),
        ("surprisal", [2.0, 9.0, 9.0], [2.0, 4.0, 1.0]),
        ("beyond_entropy", [9.0, 0.5, 9.0], [1.0, 0.5, 0.0]),
    ],
)
def test_what_a_token_counts(measure: Measure, memory: list[float] | None, expected: list[float]) -> None:
    surprisal, entropy = np.array([9.0, 4.0, 1.0], np.float16), np.array([8.0, 0.5, 3.0], np.float16)
    known = NOTHING if memory is None else np.array(memory, np.float16)
    assert token_difficulty_nats(surprisal, entropy, known, measure).tolist() == expected


def test_a_difference_of_halves_is_taken_finely() -> None:
    surprisal, entropy = np.array([20.015625], np.float16), np.array([9.9921875], np.float16)
    assert token_difficulty_nats(surprisal, entropy, NOTHING, "beyond_entropy").tolist() == [10.0234375]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measure": "excess"}, "excess needs difficulty.reference_model"),
        ({"measure": "surprisal", "reference_model": "m"}, "leave it out for measure surprisal"),
        ({"measure": "beyond_entropy", "reference_model": "m"}, "leave it out for measure beyond_entropy"),
        ({"measure": "beyond_entropy", "scorer": "none", "model": None}, "scorer none gives none"),
        (
            {"measure": "beyond_entropy", "scorer": "endpoint", "urls": ("http://a",)},
            r"with difficulty\.top_logprobs 0; set it",
        ),
        ({"measure": "entropy"}, "'surprisal', 'excess' or 'beyond_entropy'"),
    ],
)
def test_no_config_means_two_things(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DifficultyConfig(**{"model": "m", **fields})


@pytest.mark.parametrize(
    ("fields", "measure"),
    [
        ({}, "surprisal"),
        ({"measure": "surprisal"}, "surprisal"),
        ({"reference_model": "r"}, "excess"),
        ({"reference_model": "r", "measure": "excess"}, "excess"),
        ({"measure": "beyond_entropy"}, "beyond_entropy"),
        (
            {"measure": "beyond_entropy", "scorer": "endpoint", "urls": ("http://a",), "top_logprobs": 9},
            "beyond_entropy",
        ),
    ],
)
def test_a_measure_is_said_or_implied(fields: dict[str, Any], measure: str) -> None:
    """And scores that were made before it could be said stay what they are: the manifest records what isn't implied."""
    config = DifficultyConfig(**{"model": "m", **fields})
    section = difficulty_section(config)
    assert config.token_measure == measure_of(section) == measure
    assert section.get("measure") == (measure if measure == "beyond_entropy" else None)
    assert difficulty_section(DifficultyConfig(**{"model": "m", **fields, "measure": measure})) == section


def hard_to_know(tokenizer: str) -> ScoredSegment:
    """Two hard words: "f3a9" as nobody could know it, "therefore" as the scorer had not thought."""
    text = "The key f3a9 holds, as the people of the town have always known, and therefore the door is open to all."
    ids = load_tokenizer(tokenizer).encode(text)
    ends = load_tokenizer(tokenizer).byte_ends(ids)

    def touches(word: str) -> np.ndarray:
        first = text.index(word)
        return (ends > first) & (np.concatenate([[0], ends[:-1]]) < first + len(word))

    noise, thought = touches("f3a9"), touches("therefore")
    surprisal = np.where(noise, 9.0, np.where(thought, 6.0, 0.5)).astype(np.float16)
    entropy = np.where(noise, 8.5, 1.0).astype(np.float16)
    return ScoredSegment(
        doc_id="d",
        segment_index=0,
        num_segments=1,
        token_start=0,
        input_ids=ids,
        surprisal_nats=surprisal,
        entropy_nats=entropy,
        memory_nats=NOTHING,
        difficulty_nats=1.0,
    )


@pytest.mark.parametrize(("measure", "first"), [("surprisal", "f3a9"), ("beyond_entropy", "therefore")])
def test_focus_and_hard_span_go_by_the_measure(byte_tokenizer: str, measure: Measure, first: str) -> None:
    holdback = Holdback(
        tokenizer=byte_tokenizer,
        threshold_nats=2.0,
        at_hard_span=True,
        hold_back_tokens=0,
        valued_tiers=(),
        measure=measure,
    )
    segment = hard_to_know(byte_tokenizer)
    tokenizer = load_tokenizer(byte_tokenizer)
    text = tokenizer.decode(segment.input_ids)
    focus = Choices(cast(Any, None), holdback).focus(segment, text)
    assert first in focus[0]
    assert any("f3a9" in span for span in focus) == (measure == "surprisal")
    assert any("therefore" in span for span in focus)
    shown = tokenizer.decode(segment.input_ids[: holdback.shown_tokens(segment, "deep")])
    assert text[len(shown) :].lstrip().startswith("therefore"), "f3a9 stands too early for a thought before it"


def test_pictures_show_the_measure() -> None:
    units = [Unit("a", 9.0, 8.5, beyond=0.5), Unit("b", 6.0, 1.0, beyond=5.0), Unit("c", 6.0, 1.0, 0.1, beyond=5.0)]
    assert bracketed(units, 2.0).plain == "a⟦b⟧c"
    assert [span.start for span in coloured(units).spans] == [1, 2]
    html = str(room.coloured(units))
    assert 'class="a0 e8" data-s="9.00" data-e="8.50" data-b="0.50"' in html and 'class="a5 e1"' in html


@pytest.mark.parametrize("layout", ["after_document", "at_hard_span"])
def test_a_run_by_what_is_beyond_the_entropy(
    rehearsal_config: Callable[..., dict[str, Any]], write_jsonl: Callable[..., str], layout: str
) -> None:
    difficulty = {"scorer": "rehearsal", "segment_tokens": 64, "measure": "beyond_entropy", "threshold_nats": 1.0}
    config = from_mapping(rehearsal_config(write_jsonl(documents()), difficulty=difficulty, layout=layout))
    made = mill(config)
    segments = [
        segment
        for url in manifest.file_urls(config.output, made["score"], "segments")
        for segment in storage.read_records(url, ScoredSegment)
    ]
    masses = {}
    for segment in segments:
        beyond = segment.surprisal_nats.astype(np.float32) - segment.entropy_nats.astype(np.float32)
        masses[segment.segment_id] = float(np.maximum(beyond.astype(np.float64) - 1.0, 0).sum())
        assert segment.difficulty_nats == pytest.approx(masses[segment.segment_id])
        assert segment.difficulty_nats <= difficulty_nats(segment.surprisal_nats, 1.0)
    assert sum(masses.values()) > 0
    assert made["score"].counts["hard_tokens"] == sum(
        int((s.surprisal_nats.astype(np.float32) - s.entropy_nats.astype(np.float32) > 1.0).sum()) for s in segments
    )
    # What the stage read of each segment was enough to choose as one does who has all of it.
    holdback = holdback_of(config)
    by_id = {segment.segment_id: segment for segment in segments}
    requests = [
        request
        for url in manifest.file_urls(config.output, made["augment"], "requests")
        for request in storage.read_records(url, Request)
    ]
    assert requests and all(
        request.shown_tokens == holdback.shown_tokens(by_id[request.segment_id], request.tier) for request in requests
    )
    assert len(list(read_ledger(config.ledger_url))) == made["augment"].counts["generations"]
    assert made["score"].facts["scorer"]["measure"] == "beyond_entropy"


def test_scores_by_texts_and_by_measure(byte_tokenizer: str) -> None:
    texts = [document["text"] for document in documents()][:3]
    found = {}
    for measure in ("surprisal", "beyond_entropy"):
        config = DifficultyConfig(scorer="rehearsal", segment_tokens=64, measure=measure)
        found[measure] = [s.difficulty_nats for s in score_texts(texts, config, byte_tokenizer)]
    assert all(beyond <= plain for beyond, plain in zip(found["beyond_entropy"], found["surprisal"], strict=True))
    assert 0 < sum(found["beyond_entropy"]) < 0.8 * sum(found["surprisal"])
