"""Trimming: kept traces are prefixes of what was generated, cut where no gain can be told, and not by chance alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from augment.selection.account import split_account
from augment.selection.candidates import JudgedSegment
from augment.selection.config import SelectConfig
from augment.selection.controls import pools_of
from augment.selection.transforms import REJECTED, _ChooseFn
from augment.selection.trimming import TrimConfig, change_nats, prefixes_of, shortest_as_good, trim
from augment.selection.values.gain import chosen_by
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate

WORDS = ("one", "two", "three", "four", "five", "six")
SENTENCES = [f"Sentence {word} says what it says of the matter at hand." for word in WORDS]
TRACE = " ".join(SENTENCES)
CONFIG = TrimConfig(min_share=0.1)


@pytest.mark.parametrize(
    "text",
    [
        TRACE,
        "A first. It is so, e.g. in this, and goes on, as 3.14 does. “So it is.” And then\n\na part without an end",
        "一句话。又一句话。最后一句话没有结束",
        "One line only",
        "",
        "```\ncode. with dots. inside\n``` and. after it. all",
    ],
)
def test_what_is_tried_are_prefixes_that_end_with_a_sentence(text: str) -> None:
    found = prefixes_of(text, CONFIG)
    assert all(text.startswith(prefix) and 0 < len(prefix) < len(text.rstrip()) for prefix in found)
    assert found == sorted(set(found), key=len)
    assert not [prefix for prefix in found if prefix.endswith(("e.g.", "3."))]


def test_how_many_and_how_short_they_are() -> None:
    assert len(prefixes_of(TRACE, CONFIG)) == 5
    assert prefixes_of(TRACE, TrimConfig(min_share=0.45)) == [" ".join(SENTENCES[:n]) for n in (3, 4, 5)]
    assert prefixes_of(TRACE, CONFIG, min_bytes=len(TRACE) - 1) == []
    long = " ".join(SENTENCES * 20)
    few = prefixes_of(long, TrimConfig(max_prefixes=4))
    assert len(few) == 4 and few[-1] == long[: -len(SENTENCES[-1]) - 1]


def gains(per_sentence: Sequence[float], noise: float, seed: int, num_tokens: int = 128) -> np.ndarray:
    """(sentences, num_tokens) nats: each sentence adds so much to every token, and a noise that later ones keep."""
    random = np.random.default_rng(seed)
    steps = np.array(per_sentence)[:, None] + random.normal(0, noise, (len(per_sentence), num_tokens))
    return np.cumsum(steps, axis=0).astype(np.float32)


def test_a_trace_ends_where_it_stops_to_gain() -> None:
    kept = [shortest_as_good(gains([0.5, 0.5, 0.5, 0, 0, 0], 0.1, seed), CONFIG) for seed in range(40)]
    assert min(kept) >= 2 and np.mean(np.array(kept) == 2) > 0.6
    assert [shortest_as_good(gains([0.5] * 6, 0.1, seed), CONFIG) for seed in range(40)] == [5] * 40
    harmful = [shortest_as_good(gains([0.5, 0.5, -0.4, -0.4], 0.1, seed), CONFIG) for seed in range(40)]
    assert harmful == [1] * 40


def test_a_sentence_that_adds_something_is_rarely_cut_and_what_a_cut_costs_is_measured_without_bias() -> None:
    """The rule's null: no sentence adds anything. It cuts, and the half it wasn't chosen by says that this is free."""
    changes, cut = [], 0
    for seed in range(400):
        found = gains([0.0] * 6, 0.2, seed)
        kept = shortest_as_good(found, CONFIG)
        cut += kept < 5
        changes.append(change_nats(found, kept))
    error = np.std(changes) / len(changes) ** 0.5
    assert cut > 300 and abs(np.mean(changes)) < 3 * error
    on_chosen = [
        float((found[shortest_as_good(found, CONFIG)] - found[-1])[chosen_by(128)].sum())
        for found in (gains([0.0] * 6, 0.2, seed) for seed in range(400))
    ]
    assert np.mean(on_chosen) > 5 * np.std(on_chosen) / 20, "on the half that chose, a cut seems to gain"
    real = [shortest_as_good(gains([0.1] * 6, 0.2, seed), CONFIG) for seed in range(400)]
    assert np.mean(np.array(real) == 5) > 0.9


@pytest.mark.parametrize("num_tokens", [0, 1, 8, 20])
def test_where_the_error_can_not_be_told_nothing_is_cut(num_tokens: int) -> None:
    assert shortest_as_good(np.zeros((3, num_tokens), np.float32), CONFIG) == 2
    broken = np.full((3, 128), np.nan, np.float32)
    assert trim(["a", "b"], broken, CONFIG) is None


class Asked:
    """A scorer to whom the first two sentences of a trace are worth something, and nothing behind them."""

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, tokens: int) -> tuple[np.ndarray, int]:
        rows = []
        for prefix in prefixes:
            known = sum(sentence in prefix for sentence in SENTENCES[:2])
            rows.append(np.full(len(text) - skipped, 3.0 - known))
        return np.array(rows, np.float32), 0


def test_a_kept_trace_is_a_prefix_of_what_was_generated_and_the_account_says_what_that_saves(
    byte_tokenizer: str,
) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)

    def candidate(name: str, text: str) -> Candidate:
        return Candidate(
            doc_id=name, segment_index=0, key=f"{name}-0", sample=0, tier="deep", model="m", prompt="expert",
            closed="natural", finish_reason="stop", thought_tokens=90, text=text, input_ids=tokenizer.encode(text),
            shown_tokens=9, kept=False, reasons=[],
        )  # fmt: skip

    def segment(name: str, text: str) -> JudgedSegment:
        return JudgedSegment(
            doc_id=name, segment_index=0, document=name, tier="deep", trace_tokens=99, valued=True,
            source_text=f"source {name}", continuation="what follows it " * 8, candidates=[candidate(name, text)],
        )  # fmt: skip

    others = [f"Trace {n} of another matter, which is as long as any other one would be." for n in range(1, 5)]
    segments = [segment(str(n), text) for n, text in enumerate([TRACE, *others])]
    outputs: dict[bool, list[Any]] = {}
    for trimming in (False, True):
        config = SelectConfig(value="continuation_gain", trim=CONFIG if trimming else None)
        fn = _ChooseFn(config, byte_tokenizer, Asked(), 2.0)
        fn.setup()
        outputs[trimming] = list(fn.process(segments[0], pools_of(segments, 8), {}))
    (whole,) = [one for one in outputs[False] if isinstance(one, Candidate)]
    (cut,) = [one for one in outputs[True] if isinstance(one, Candidate)]
    assert whole.text == TRACE and cut.text == " ".join(SENTENCES[:2])
    assert TRACE.encode().startswith(cut.text.encode()) and tokenizer.decode(cut.input_ids) == cut.text
    assert cut.thought_tokens == whole.thought_tokens, "what was paid"
    assert (cut.value, cut.gain_nats, cut.heldout_nats) == (whole.value, whole.gain_nats, whole.heldout_nats)
    counts: dict[str, int] = {}
    for one in outputs[True]:
        if not isinstance(one, Candidate) and getattr(one, "tag", "") != REJECTED:
            for name, number in one.value.items():
                counts[name] = counts.get(name, 0) + number
    plain, (row,) = split_account(counts)
    saved = len(whole.input_ids) - len(cut.input_ids)
    assert plain["trimmed"] == 1 and plain["trimmed_tokens"] == saved > 0
    assert row["trim"]["traces"] == 1 and row["trim"]["tokens_saved"] == saved
    assert abs(row["trim"]["change"]["mean"]) < 2


def test_trim_goes_with_a_gain() -> None:
    with pytest.raises(ValidationError, match="trim: goes by the gain"):
        SelectConfig(value="length", trim=CONFIG)
