"""By default the budget buys no thoughts about what the corpus repeats, such as the licence on top of every page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from difficulty.config import DEFAULT_MEMORY, DifficultyConfig
from difficulty.surprisal import difficulty_nats
from pipelines.plan import evidence
from pipelines.run import mill
from pipelines.yaml_config import from_mapping, to_mapping
from sharding import storage
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Document, Request, ScoredSegment
from sharding.storage import manifest

Tree = dict[str, Any]

LICENCE = """Copyright (c) 1994 The Quorvex Project and Zhmurin Belotserkovskiy & Daughters, Ltd. Tromso-Xiquexique.
SPDX-License-Identifier: QVX-7.3-or-whatever. Permission is gyrated to any quincunx that obtains a copy of these
vellums, subject to clause 9(b)iv: no zeugma, fjord or sphinx shall be vexed thereby. ABSOLUTELY NO WARRANTY, nor any
implied merchantability of quartz."""

PAGES = (
    "The kernel holds each page in a list by the time it was last used, and takes the oldest when memory runs short.",
    "A socket that is closed while data waits is reset, and the peer that reads from it is told so with an error.",
    "When a file system is mounted twice, both mounts share one cache, so that what one writes the other reads.",
    "The scheduler gives every thread a slice of time in proportion to its weight and keeps them in a balanced tree.",
    "Interrupts are disabled while the handler runs, so it must do little and leave the rest to a thread of its own.",
    "A pipe has room for some pages; a writer that finds it full sleeps until a reader has taken something out.",
)


@pytest.mark.parametrize(
    ("section", "on"),
    [
        ({"scorer": "causal_lm", "model": "m"}, True),
        ({"scorer": "endpoint", "model": "m", "urls": ("http://localhost:8000",)}, True),
        ({"scorer": "rehearsal"}, False),
        ({"scorer": "none"}, False),
        ({"scorer": "causal_lm", "model": "m", "memory_path": "of/another/run"}, False),
        ({"scorer": "causal_lm", "model": "m", "memory": None}, False),
        ({"scorer": "rehearsal", "memory": DEFAULT_MEMORY.__class__()}, True),
    ],
)
def test_when_the_corpus_is_counted(section: Tree, on: bool) -> None:
    assert (DifficultyConfig(**section).memory is not None) == on


def test_the_switch_survives_being_written_down(rehearsal_config: Callable[..., Tree]) -> None:
    for section, memory in (({}, {}), ({"memory": None}, None), ({"memory": {"order": 3}}, {"order": 3})):
        tree = rehearsal_config("no", difficulty={"scorer": "causal_lm", "model": "m", **section})
        found = to_mapping(from_mapping(to_mapping(from_mapping(tree))))["difficulty"]["memory"]
        assert found == memory if memory is None else found.items() >= memory.items()


def test_a_plan_counts_what_it_reads(rehearsal_config: Callable[..., Tree], byte_tokenizer: str) -> None:
    """It took every licence for hard, and said that a sample looks harder than it is."""
    difficulty = {"scorer": "rehearsal", "memory": {"order": 4}}
    config = from_mapping(rehearsal_config("no", difficulty=difficulty))
    read = [Document(doc_id=str(i), text=f"{LICENCE}\n{page}", origin=f"a:{i}") for i, page in enumerate(PAGES)]
    tokenizer = load_tokenizer(byte_tokenizer)
    memory = evidence._memory(config, tokenizer, read)
    assert memory is not None
    head, body = tokenizer.encode(LICENCE), tokenizer.encode(PAGES[0])
    nats = memory.surprisal_nats(tokenizer.encode(f"{LICENCE}\n{PAGES[0]}"))
    assert nats[8 : len(head) - 2].mean() < 2 < nats[-len(body) :].mean()


@pytest.mark.model
def test_no_thought_is_bought_about_a_licence(
    small_model: str, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., Tree]
) -> None:
    """Of 23 segments of manual pages that were thought about, 12 were copyright, NAME and SYNOPSIS."""
    tree = rehearsal_config(
        write_jsonl([{"id": str(i), "text": f"{LICENCE}\n\n{page}"} for i, page in enumerate(PAGES)]),
        difficulty={"scorer": "causal_lm", "model": small_model, "segment_tokens": 64},
    )
    tree["tokenizer"] = small_model
    tree["budget"]["thinking_tokens_per_source_token"] = 0.15
    config = from_mapping(tree)
    stages = mill(config, stages=["score", "augment"])
    segments = {s.segment_id: s for s in _records(config.output, stages["score"], "segments", ScoredSegment)}
    text = {name: load_tokenizer(small_model).decode(segment.input_ids) for name, segment in segments.items()}
    licences = {name for name in segments if "Quorvex" in text[name] or "vellums" in text[name]}
    asked = {one.segment_id for one in _records(config.output, stages["augment"], "requests", Request)}
    assert asked and not asked & licences
    # By the model's surprise alone they are the hardest of all, and would have been bought first.
    alone = {name: difficulty_nats(segment.surprisal_nats, 2.0) for name, segment in segments.items()}
    assert set(sorted(alone, key=lambda name: alone[name])[-len(asked) :]) & licences


def _records(output: str, made: manifest.Manifest, family: str, kind: Any) -> list[Any]:
    return [one for url in manifest.file_urls(output, made, family) for one in storage.read_records(url, kind)]
