"""Values: what the gains are made of, that copying has no value, and that a user's own value is found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from augment.selection.values import needs_continuation, needs_controls, value_class, value_digest
from augment.selection.values.gain import BLOCK_TOKENS, ContinuationGain, SelfGain, chosen_by, copied_part
from augment.selection.values.protocol import NatsAfter, Trial, Valuation
from augment.traces import Trace
from difficulty.config import DifficultyConfig
from difficulty.scorers import make_scorer
from difficulty.scorers.protocol import Scorer, score_documents
from difficulty.scorers.reading import MIN_FRONT_TOKENS, SEPARATOR, first_token_after, front_tokens
from difficulty.scorers.rehearsal import RehearsalScorer
from sharding.errors import RequestError


def trace(text: str, thought_tokens: int = 10) -> Trace:
    return Trace(text=text, closed="natural", finish_reason="stop", thought_tokens=thought_tokens)


def trial(
    traces: Sequence[str], controls: Sequence[str] = (), source: str = "The segment.", after: str = " Next."
) -> Trial:
    return Trial(
        segment_id="d#0",
        tier="deep",
        source_text=source,
        continuation=after,
        traces=[trace(text) for text in traces],
        controls=controls,
        trace_tokens=512,
    )


class Table:
    """A scorer that knows the nats of every prefix beforehand."""

    def __init__(self, nats: dict[str, list[float]]) -> None:
        self.nats, self.calls = nats, list[tuple[list[str], str, int, int]]()

    def __call__(self, prefixes: Sequence[str], text: str, skipped: int, prefix_tokens: int) -> np.ndarray:
        self.calls.append((list(prefixes), text, skipped, prefix_tokens))
        return np.array([self.nats[prefix] for prefix in prefixes], np.float32)


def test_continuation_gain_is_measured_against_the_controls_and_on_tokens_not_chosen_by() -> None:
    table = Table(
        {
            "": [3.0, 1.0, 5.0, 1.0],
            "good": [2.0, 1.0, 1.0, 0.5],  # gains 1, 0, 4, 0.5
            "bad": [3.5, 1.0, 5.0, 1.0],  # gains -0.5, 0, 0, 0
            "other": [2.5, 1.0, 5.0, 1.5],  # gains 0.5, 0, 0, -0.5
            "another": [3.0, 1.0, 4.0, 1.0],  # gains 0, 0, 1, 0
        }
    )
    good, bad = ContinuationGain(table, threshold_nats=2.0).valuations(trial(["good", "bad"], ["other", "another"]))
    assert table.calls == [(["", "good", "bad", "other", "another"], "The segment. Next.", len("The segment."), 512)]
    # The control gains 0.25, 0, 0.5, -0.25. Of four tokens the first two choose, the last two report; each half is
    # scaled up to the whole.
    assert good == Valuation(value=1.5, gain_nats=5.5, control_nats=0.5, hard_gain_nats=4.25, heldout_nats=8.5)
    assert bad == Valuation(value=-1.5, gain_nats=-0.5, control_nats=0.5, hard_gain_nats=-1.25, heldout_nats=-0.5)


def test_self_gain_is_measured_against_what_the_trace_copies() -> None:
    source = "one two three four"
    table = Table(
        {"": [4.0, 4.0], "so one two three, or five": [1.0, 3.0], "one two three": [2.0, 3.5], "nothing": [3.0, 4.0]}
    )
    copier, own = SelfGain(table, threshold_nats=2.0).valuations(
        trial(["so one two three, or five", "nothing"], source=source)
    )
    assert table.calls[0][0] == ["", "so one two three, or five", "nothing", "one two three", ""]
    assert (copier.gain_nats, copier.control_nats) == (4.0, 2.5)
    assert (own.gain_nats, own.control_nats) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("words", "source", "copied"),
    [
        ("it says: the loop ends here, and stops", "When The loop ends here. And then", "the loop ends here, and"),
        ("the loop", "the loop ends", ""),
        ("a b c x d e f", "a b c d e f", "a b c d e f"),
        ("水は零度で凍る", "水は零度で凍り", "水は零度で凍"),
        ("", "a b c", ""),
    ],
)
def test_copied_part(words: str, source: str, copied: str) -> None:
    assert copied_part(words, source) == copied


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 15, 32, 33, 100, 256])
def test_the_two_halves_share_no_token_and_are_about_equal(num_tokens: int) -> None:
    choosing = chosen_by(num_tokens)
    assert len(choosing) == num_tokens
    assert choosing.any()
    if num_tokens > 1:
        assert abs(int(choosing.sum()) - int((~choosing).sum())) <= BLOCK_TOKENS
        assert not choosing.all()


def test_without_a_continuation_there_is_no_value() -> None:
    valuations = ContinuationGain(lambda prefixes, *_: np.empty((len(prefixes), 0), np.float32), 2.0).valuations(
        trial(["a", "b"], after="")
    )
    assert [(valuation.value, valuation.unvalued) for valuation in valuations] == [(None, "nothing_follows")] * 2


def test_a_trace_too_long_to_be_read_has_no_value_and_the_others_keep_theirs() -> None:
    nats = {"": [3.0, 1.0], "long": [math.nan] * 2, "short": [2.0, 1.0], "other": [3.0, 0.5], "vast": [math.nan] * 2}
    value = ContinuationGain(Table(nats), 2.0)
    long, short = value.valuations(trial(["long", "short"], ["other", "vast"]))
    [alone] = value.valuations(trial(["short"], ["other", "vast"]))
    assert (long.value, long.gain_nats, long.unvalued) == (None, None, "too_long")
    assert short == alone and short.gain_nats == 1.0 and short.control_nats == 0.5


# --- a user's own value -----------------------------------------------------------------------------------------------

BREVITY = '''
from augment.selection.values.protocol import Valuation


class Brevity:
    """The shortest trace wins."""

    needs_continuation = False
    needs_controls = False

    def __init__(self, nats_after, threshold_nats):
        pass

    def valuations(self, trial):
        return [Valuation(value=-len(trace.text)) for trace in trial.traces]
'''


def test_a_value_in_a_file_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "my_values.py"
    file.write_text(BREVITY)
    name = f"{file}:Brevity"
    made = value_class(name)(None, 2.0)
    assert [valuation.value for valuation in made.valuations(trial(["long one", "short"]))] == [-8, -5]
    assert not needs_continuation(name) and not needs_controls(name)
    before = value_digest(name)
    file.write_text(BREVITY + "\n# changed\n")
    assert value_digest(name) != before


@pytest.mark.parametrize(
    "name",
    [
        "nowhere.py:Value",
        "augment.selection.values.protocol:Nothing",
        "no_such_module:X",
        "augment.selection.gates:Gate",
    ],
)
def test_a_value_that_is_not_there(name: str) -> None:
    with pytest.raises(RequestError, match=r"select\.value"):
        value_class(name)


def test_built_in_values_say_what_they_need() -> None:
    assert needs_continuation("continuation_gain") and needs_controls("continuation_gain")
    assert not needs_continuation("self_gain") and not needs_controls("self_gain")
    assert not needs_continuation("none") and not needs_controls("none")


# --- the scorers' part ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skipped", "first"), [(0, 0), (1, 1), (3, 1), (4, 2), (5, 2), (6, 3)], ids=lambda value: str(value)
)
def test_the_first_token_after_a_place(skipped: int, first: int) -> None:
    assert first_token_after(np.array([3, 5, 9]), skipped) == first


def test_rehearsed_nats_depend_on_the_prefix_alone() -> None:
    scorer: Scorer = RehearsalScorer()
    text = topics["lambda"]
    nats = scorer.nats_after(["", "one", "two", "one"], text, 200, prefix_tokens=8).nats
    [alone] = scorer.score([text])
    assert np.array_equal(nats[0], alone.surprisal_nats[-nats.shape[1] :])
    assert np.array_equal(nats[1], nats[3])
    assert not np.array_equal(nats[1], nats[2])


@pytest.mark.parametrize(
    ("front", "given", "prefix_tokens", "context_tokens", "read"),
    [
        (500, 256, 2048, 8192, 500),  # all fits
        (500, 256, 700, 1024, 68),  # the front of the segment goes, for the longest trace there may be
        (500, 256, 800, 1024, MIN_FRONT_TOKENS),  # not all of it
        (40, 256, 800, 1024, 40),
        (500, 256, 10**6, None, 500),
    ],
)
def test_what_is_read_of_a_segment(
    front: int, given: int, prefix_tokens: int, context_tokens: int | None, read: int
) -> None:
    assert front_tokens(front, given, prefix_tokens, context_tokens) == read


@pytest.fixture(scope="module")
def scorer(small_model: str) -> Scorer:
    # The window of score is no matter to the values.
    return make_scorer(DifficultyConfig(model=small_model, context_tokens=512, min_context=128))


def nats_of_the_whole(scorer: Scorer, prefix: str, text: str, tokens: int) -> np.ndarray:
    """The last nats of prefix and text, read as one text, cut as the text alone is."""
    before = f"{prefix}{SEPARATOR}" if prefix else ""
    [alone] = scorer.score([text])
    length = len(before.encode())
    ends = np.concatenate([[length] if length else [], alone.byte_ends + length]).astype(np.int64)
    [scored] = score_documents(scorer, [before + text], [ends])
    return scored.surprisal_nats[-tokens:]


@pytest.mark.model
def test_nats_after_are_those_of_the_whole_text(scorer: Scorer) -> None:
    text = topics["lambda"]
    prefixes = ["", "A lambda is a function without a name.", topics["del"][:300]]
    found = scorer.nats_after(prefixes, text, 150, prefix_tokens=256)
    # The blank line and the text's first characters may be one token in the whole; the tokens given are the same.
    for row, prefix in zip(found.nats, prefixes, strict=True):
        assert np.abs(row - nats_of_the_whole(scorer, prefix, text, len(row))).max() < 2e-3
    assert np.abs(found.nats[1] - found.nats[0]).max() > 0.1 and found.cut_tokens == 0


@pytest.mark.model
def test_long_traces_are_read_whole(scorer: Scorer) -> None:
    """Traces of 300 and of 700 tokens that differ in their first sentence alone: what they do differs."""
    segment, after = topics["strings"][:1200], topics["strings"][1200:1500]
    rest = topics["lambda"] + topics["del"]
    for size in (1200, 2800):
        traces = [first + rest[:size] for first in ("String literals are Unicode. ", "Bytes are not text. ")]
        found = scorer.nats_after(traces, segment + after, len(segment), prefix_tokens=1024)
        assert np.isfinite(found.nats).all() and found.cut_tokens == 0
        assert np.abs(found.nats[0] - found.nats[1]).max() > 1e-2
        # And the segment stands before its continuation whatever the trace's length.
        assert found.nats.sum(axis=1).max() < scorer.nats_after([""], after, 0, prefix_tokens=0).nats.sum()


@pytest.mark.model
def test_what_does_not_fit_is_shortened_by_one_rule_or_not_valued(scorer: Scorer) -> None:
    text, skipped = topics["strings"][:2400], 1800
    short, long, vast = topics["lambda"][:400], topics["del"][:700], topics["strings"] * 2
    context = {"prefix_tokens": 256, "context_tokens": 512}
    together = scorer.nats_after(["", short, long, vast], text, skipped, **context)
    assert np.isnan(together.nats[3]).all() and np.isfinite(together.nats[:3]).all()
    assert together.cut_tokens > 0
    for number, prefix in enumerate(("", short, long)):
        alone = scorer.nats_after([prefix], text, skipped, **context)
        assert alone.cut_tokens == together.cut_tokens, "whatever its siblings are"
        assert np.abs(alone.nats[0] - together.nats[number]).max() < 2e-3
    with pytest.raises(RequestError, match=r"select\.gain\.context_tokens: 1000000"):
        scorer.nats_after([short], text, skipped, prefix_tokens=256, context_tokens=10**6)


def nats_of(scorer: Scorer) -> NatsAfter:
    return lambda prefixes, text, skipped, size: scorer.nats_after(prefixes, text, skipped, prefix_tokens=size).nats


@pytest.mark.model
def test_a_trace_that_copies_the_segment_gains_nothing_on_what_follows(scorer: Scorer) -> None:
    """What a copy of the segment gains over a trace about another page, on text it does not show."""
    pages = [text for _, text in sorted(topics.items()) if len(text) > 2500][:10]
    cases = [(page[:400], page[400:700], other[400:800]) for page, other in zip(pages[:5], pages[5:], strict=True)]
    value = ContinuationGain(nats_of(scorer), 2.0)
    copies, informed = [], []
    for source, after, other in cases:
        knowing = "What comes next: " + after[: len(after) // 2]
        copy, knows = value.valuations(trial([source, knowing], [other], source, after))
        copies.append((copy.gain_nats or 0) - (copy.control_nats or 0))
        informed.append((knows.gain_nats or 0) - (knows.control_nats or 0))
    # On text it doesn't show, the copy gains little or nothing; a trace that knows what comes gains a lot.
    assert np.mean(copies) < 0.1 * np.mean(informed), (copies, informed)
    assert all(knows > copy for knows, copy in zip(informed, copies, strict=True))
    # Raw gain on the segment itself rewards the copy with most of the segment's nats; its control takes them back.
    source, after, _ = cases[0]
    [valuation] = SelfGain(nats_of(scorer), 2.0).valuations(trial([source], source=source, after=after))
    assert valuation.gain_nats is not None and valuation.value is not None
    assert valuation.gain_nats > 100 and abs(valuation.value) < 0.05 * valuation.gain_nats
