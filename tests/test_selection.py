"""Selection: every candidate ends kept or rejected with its reasons, as the config says, and the account adds up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.selection.account import account_counts, in_words, split_account
from augment.selection.candidates import AskedSegment, Control, JudgedSegment
from augment.selection.config import SelectConfig
from augment.selection.controls import controls_for, controls_of, lowest_ranks, pools_of
from augment.selection.keeping import BELOW_THRESHOLD, NOT_CHOSEN, UNVALUED, choose
from augment.selection.transforms import _JudgeFn
from augment.selection.valuing import ValuedSegment
from pipelines.joints import MIN_SHOWN_TOKENS, Holdback, holdback_of
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate, Request, ScoredSegment
from sharding.storage import manifest
from tests.test_ledger import row as ledger_row
from tests.test_stages import documents


def candidate(sample: int, value: float | None = None, reasons: tuple[str, ...] = (), **fields: Any) -> Candidate:
    values: dict[str, Any] = {
        "doc_id": "d",
        "segment_index": 0,
        "key": f"k-{sample}",
        "sample": sample,
        "tier": "deep",
        "model": "m",
        "prompt": "p",
        "closed": "natural",
        "finish_reason": "stop",
        "thought_tokens": 10,
        "text": "because",
        "input_ids": np.array([1], np.uint16),
        "shown_tokens": 4,
        "value": value,
        "kept": False,
        "reasons": list(reasons),
    }
    return Candidate(**{**values, **fields})


def kept(candidates: list[Candidate], **config: Any) -> list[int]:
    decided = choose(candidates, SelectConfig(**config))
    assert all(c.kept == (not c.reasons) for c in decided)
    return [c.sample for c in decided if c.kept]


FOUR = [candidate(0, 1.0), candidate(1, 3.0, ("loop",)), candidate(2, 2.0), candidate(3, 2.0)]


@pytest.mark.parametrize(
    ("config", "candidates", "expected"),
    [
        ({"keep": "best"}, FOUR, [2]),  # of equals the first; not the looping one
        ({"keep": "first"}, FOUR, [0]),
        ({"keep": "all"}, FOUR, [0, 2, 3]),
        ({"keep": "best_above", "min_value": 1.5}, FOUR, [2]),
        ({"keep": "best_above", "min_value": 2.5}, FOUR, []),
        # What the best of as many controls reaches is no merit.
        ({"keep": "best_above", "min_value": 1.5}, [candidate(0, 2.0, chance_value=0.6)], []),
        ({"keep": "best_above", "min_value": 1.5}, [candidate(0, 2.0, chance_value=0.4)], [0]),
        ({"keep": "best"}, [candidate(0, -5.0), candidate(1, -4.0)], [1]),
        ({"keep": "best"}, [candidate(0, None), candidate(1, None)], [0]),  # nothing to try them on: the first
        ({"keep": "best_above", "min_value": 9.0}, [candidate(0, None)], []),  # not worth what isn't known
        ({"keep": "best_above", "min_value": -9.0}, [candidate(0, None), candidate(1, -1.0)], [1]),
        ({"keep": "sample"}, [candidate(0, None), candidate(1, None)], [0]),
        ({"keep": "best"}, [candidate(0, 1.0, ("loop",))], []),
        ({"keep": "sample", "sample_temperature": 1e-6}, FOUR[:3], [2]),
        ({"keep": "best"}, [], []),
    ],
)
def test_what_is_kept(config: dict[str, Any], candidates: list[Candidate], expected: list[int]) -> None:
    assert kept(candidates, **config) == expected


def test_why_the_others_are_not() -> None:
    assert [c.reasons for c in choose(FOUR, SelectConfig())] == [[NOT_CHOSEN], ["loop"], [], [NOT_CHOSEN]]
    refused = choose(FOUR, SelectConfig(keep="best_above", min_value=9.0))
    assert [c.reasons for c in refused] == [[BELOW_THRESHOLD], ["loop"], [BELOW_THRESHOLD], [BELOW_THRESHOLD]]
    refused = choose([candidate(0), candidate(1, 8.0)], SelectConfig(keep="best_above", min_value=9.0))
    assert [c.reasons for c in refused] == [[UNVALUED], [BELOW_THRESHOLD]]


def test_sampling_is_in_proportion_to_the_exponential_of_the_value_and_the_same_every_time() -> None:
    config = SelectConfig(keep="sample")
    counts: Counter[int] = Counter()
    for n in range(4000):
        pair = [candidate(0, 0.0, doc_id=f"d{n}"), candidate(1, float(np.log(3)), doc_id=f"d{n}")]
        [chosen] = [c.sample for c in choose(pair, config) if c.kept]
        assert [c.sample for c in choose(pair[::-1], config) if c.kept] == [chosen]
        counts[chosen] += 1
    assert counts[1] / counts.total() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"value": "none", "keep": "best_above"}, "needs a value"),
        ({"value": "none", "keep": "sample"}, "needs a value"),
        ({"value": "continuation"}, "continuation_gain"),
        ({"keep": "worst"}, "keep"),
        ({"min_value": 0.5}, "min_value: 0.5 .*best_above alone, and keep is best"),
    ],
)
def test_a_config_that_can_not_be(
    config: dict[str, Any], message: str, rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(RequestError, match=message):
        from_mapping(rehearsal_config("x.jsonl", select=config))


def test_which_tiers_are_valued() -> None:
    assert [SelectConfig().values_traces(has_scorer) for has_scorer in (False, True)] == [False, True]
    assert [SelectConfig(value="length").values_traces(has_scorer) for has_scorer in (False, True)] == [True, True]
    assert not SelectConfig(value="none").values_traces(True)
    assert SelectConfig(keep="best_above").values_traces(False), "which the config refuses"


@pytest.mark.parametrize(
    ("sections", "valued"),
    [
        ({}, ("brief", "deep")),
        ({"select": {"value": "none"}}, ()),
        ({"difficulty": {"scorer": "none", "segment_tokens": 64}}, ()),
        ({"select": {"gain": {"scorer": {"scorer": "rehearsal"}}}}, ("brief", "deep")),
    ],
)
def test_every_tier_that_can_be_valued_is(
    rehearsal_config: Callable[..., dict[str, Any]], sections: dict[str, Any], valued: tuple[str, ...]
) -> None:
    tree = rehearsal_config("x.jsonl", **sections)
    if "difficulty" in sections:
        tree["budget"]["policy"] = "uniform"
    assert holdback_of(from_mapping(tree)).valued_tiers == valued


# --- the account ------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["brief", "deep"]),
            st.lists(st.sampled_from(["loop", "too_short", "language"]), max_size=2, unique=True),
            st.none() | st.floats(-50, 50),
        ),
        max_size=8,
    ),
    st.sampled_from(["first", "best", "all", "best_above"]),
)
def test_the_account_adds_up(drawn: list[tuple[str, list[str], float | None]], keep: Any) -> None:
    candidates = [
        candidate(n, value, tuple(reasons), tier=tier, heldout_nats=value, gain_nats=value, control_nats=0.0)
        for n, (tier, reasons, value) in enumerate(drawn)
    ]
    decided = choose(candidates, SelectConfig(keep=keep))
    plain, table = split_account(account_counts(decided, unvalued(candidates)))
    assert sum(row["candidates"] for row in table) == len(candidates) == plain.get("candidates", 0)
    for row in table:
        assert row["kept"] + row["rejected"] == row["candidates"]
        assert sum(row["reasons"].values()) == row["rejected"]
        assert sum(row["objections"].values()) >= row["rejected"]


def unvalued(candidates: list[Candidate]) -> ValuedSegment:
    return ValuedSegment(candidates=candidates, document="d")


def account_of(segments: Sequence[tuple[str, list[Candidate], float]], **config: Any) -> dict[str, Any]:
    """The account's only row; of each segment the document, candidates, and the null of either kind."""
    totals: Counter[str] = Counter()
    for document, candidates, null in segments:
        valued = ValuedSegment(candidates=candidates, document=document, null_first_nats=null, null_choice_nats=null)
        totals.update(account_counts(choose(candidates, SelectConfig(**config)), valued))
    [row] = split_account(totals)[1]
    return row


def gained(sample: int, value: float, heldout: float, net: float, chance: float = 0.5, **fields: Any) -> Candidate:
    nats = {"heldout_nats": heldout, "gain_nats": net + 1, "control_nats": 1.0, "hard_gain_nats": net / 2}
    return candidate(sample, value, chance_value=1.0, chance_heldout_nats=chance, **nats, **fields)


def test_the_gains_of_an_account() -> None:
    net = 1.0 + (np.arange(10) - 4.5)
    segments = [
        (f"doc-{n}", [gained(0, 0.0, 1.0, of_both), gained(1, 9.0, 3.0, 2.0 + of_both)], 0.1)
        for n, of_both in enumerate(net)
    ]
    row = account_of(segments)
    gains = row["gains"]
    means = {what: found["mean"] for what, found in gains.items()}
    assert means == {
        "heldout_first": 2.0,  # the mean of both, over the whole text
        "heldout_choice": 0.5,  # half of what the better gains beyond the other, less 0.5 by chance
        "heldout": 2.5,  # both together
        "null_first": 0.1,
        "null": 0.2,
        "gain": 4.0,
        "control": 1.0,
        "hard_gain": 1.5,
    }
    assert {found["segments"] for found in gains.values()} == {found["documents"] for found in gains.values()} == {10}
    half = 2.2622 * net.std(ddof=1) / np.sqrt(10)  # t of 9 degrees of freedom
    assert gains["heldout_first"]["interval95"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert row["lengths"] == {
        "kept": {"candidates": 10, "mean_thought_tokens": 10.0, "nats_per_1000_thought_tokens": 300.0},
        "rejected": {"candidates": 10, "mean_thought_tokens": 10.0, "nats_per_1000_thought_tokens": 100.0},
    }


def test_a_document_counts_once_however_many_segments_it_has() -> None:
    one = [gained(0, 0.0, 1.0, 1.0)]
    gains = account_of([("same", one, 0.0)] * 30)["gains"]
    assert gains["heldout_first"] == {"mean": 1.0, "interval95": None, "segments": 30, "documents": 1}
    assert in_words(gains["heldout_first"]) == "+1.00 (too few to say: 1 documents)"
    many = account_of([(f"doc-{n % 8}", one, 0.0) for n in range(30)])["gains"]
    assert many["heldout_first"]["documents"] == 8 and many["heldout_first"]["interval95"] == [1.0, 1.0]


def test_traces_without_a_value_are_counted_by_the_reason() -> None:
    candidates = [candidate(0, unvalued="too_long"), candidate(1, unvalued="too_long"), gained(2, 1.0, 1.0, 1.0)]
    plain, [row] = split_account(
        account_counts(
            choose(candidates, SelectConfig()), ValuedSegment(candidates=candidates, document="d", cut_tokens=9)
        )
    )
    assert plain["unvalued.too_long"] == 2 and plain["valued_without_front"] == 1
    assert row["gains"]["heldout_first"]["segments"] == 1


# --- controls ---------------------------------------------------------------------------------------------------------


def judged(doc: str, *candidates: Candidate, valued: bool = True, text: str = "", document: str = "") -> JudgedSegment:
    of_doc = [
        msgspec.structs.replace(c, doc_id=doc, key=f"{doc}-{c.sample}", text=c.text.replace("because", f"why {doc}"))
        for c in candidates
    ]
    return JudgedSegment(
        doc_id=doc,
        segment_index=0,
        document=document or doc,
        tier="deep",
        trace_tokens=64,
        valued=valued,
        source_text=text or f"the text of {doc}",
        continuation="c",
        candidates=of_doc,
    )


def test_controls_are_traces_of_other_documents_about_as_long() -> None:
    segments = [judged(f"doc-{n}", candidate(0, thought_tokens=10 * n), candidate(1)) for n in range(100)]
    [pool] = pools_of(segments, 64).values()
    assert len(pool) == 64 and all(len(control.traces) == 2 for control in pool)
    segment = judged("doc-3", candidate(0, thought_tokens=500), candidate(1, thought_tokens=520))
    found = controls_for(segment, pool, 4)
    assert len({control.document for control in found} - {"doc-3"}) == 4
    nearest = sorted(abs(control.octave - 9) for control in pool)[3]
    assert all(abs(control.octave - 9) <= nearest for control in found)
    assert controls_for(segment, pool[::-1], 4) == found
    # Another segment gets others.
    other = judged("doc-4", candidate(0, thought_tokens=500), candidate(1, thought_tokens=520))
    assert controls_for(other, pool, 4) != found
    assert controls_for(segment, pool[:3], 4) == [], "too few documents: none at all"


def test_in_a_corpus_with_copies_no_trace_is_its_own_control() -> None:
    """Each page four times, under ids of their own; and two segments whose generators wrote the same."""
    segments = [
        judged(f"copy-{copy}-of-{page}", candidate(0), text=f"page {page}", document=f"page {page}")
        for page in range(6)
        for copy in range(4)
    ]
    segments = [
        msgspec.structs.replace(
            s, candidates=[msgspec.structs.replace(c, text=f"about {s.document}") for c in s.candidates]
        )
        for s in segments
    ]
    [pool] = pools_of(segments, 64).values()
    assert len(pool) == 6
    for segment in segments:
        found = controls_for(segment, pool, 5)
        assert len(found) == 5 and segment.document not in {control.document for control in found}
    alike = msgspec.structs.replace(
        segments[0], document="another", source_text="another", candidates=segments[8].candidates
    )
    assert segments[8].document not in {control.document for control in controls_for(alike, pool, 5)}


@given(st.permutations(range(12)), st.integers(1, 11))
def test_the_pool_does_not_depend_on_the_order(order: list[int], cut: int) -> None:
    controls = [
        Control(rank=f"{(7 * n) % 8:02}", document=f"d{n}", segment_id=f"d{n}#0", octave=1, traces=[])
        for n in range(12)
    ]
    shuffled = [controls[n] for n in order]
    merged = lowest_ranks([*lowest_ranks(shuffled[:cut], 5), *lowest_ranks(shuffled[cut:], 5)], 5)
    assert merged == lowest_ranks(controls, 5)
    assert len({control.rank for control in merged}) == 5, "of equal texts one"


def test_a_rejected_or_unvalued_trace_is_no_control() -> None:
    [(_, control)] = controls_of(judged("d", candidate(0, None, ("loop",)), candidate(1, text="so")))
    assert [trace.text for trace in control.traces] == ["so"]
    assert list(controls_of(judged("d", candidate(0, None, ("loop",))))) == []
    assert list(controls_of(judged("d", candidate(0), valued=False))) == []


# --- how much of a segment is shown -----------------------------------------------------------------------------------


def segment(tokenizer: Any, text: str, index: int, num_segments: int, hard: int | None = None) -> ScoredSegment:
    ids = tokenizer.encode(text)
    nats = np.full(len(ids), 0.5, np.float16)
    if hard is not None:
        nats[hard] = 9.0
    return ScoredSegment(
        doc_id="d",
        segment_index=index,
        num_segments=num_segments,
        token_start=0,
        input_ids=ids,
        surprisal_nats=nats,
        entropy_nats=nats,
        memory_nats=np.empty(0, np.float16),
        difficulty_nats=1.0,
    )


def shown(byte_tokenizer: str, **fields: Any) -> Holdback:
    values: dict[str, Any] = {
        "tokenizer": byte_tokenizer,
        "threshold_nats": 2.0,
        "at_hard_span": False,
        "hold_back_tokens": 20,
        "valued_tiers": ("deep",),
    }
    return Holdback(**{**values, **fields})


TEXT = "日本語のテキストと emoji 👩‍👩‍👧‍👦 and plain words, one after the other, until there are enough of them to cut."


def test_the_last_segment_keeps_back_its_tail(byte_tokenizer: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    last, inner = segment(tokenizer, TEXT, 1, 2), segment(tokenizer, TEXT, 0, 2)
    num_tokens = len(last.input_ids)
    assert shown(byte_tokenizer).shown_tokens(last, "deep") == num_tokens - 20
    assert shown(byte_tokenizer).shown_tokens(last, "brief") == num_tokens
    assert shown(byte_tokenizer).shown_tokens(inner, "deep") == num_tokens
    assert shown(byte_tokenizer, hold_back_tokens=10_000).shown_tokens(last, "deep") >= num_tokens * 2 // 3 - 3
    short = segment(tokenizer, "too short", 0, 1)
    assert shown(byte_tokenizer).shown_tokens(short, "deep") == len(tokenizer.encode("too short"))


@pytest.mark.parametrize("hard", range(0, 60, 3))
def test_a_thought_within_a_segment_sees_what_stands_before_the_hardest_span(byte_tokenizer: str, hard: int) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    whole = segment(tokenizer, TEXT, 0, 1, hard)
    place = shown(byte_tokenizer, at_hard_span=True).shown_tokens(whole, "deep")
    assert MIN_SHOWN_TOKENS - 3 <= place < len(whole.input_ids)
    if hard >= MIN_SHOWN_TOKENS:
        assert hard - 3 <= place <= hard
    tokenizer.decode(whole.input_ids[:place])  # whole characters on both sides
    tokenizer.decode(whole.input_ids[place:])


def test_one_token_has_nothing_before_it(byte_tokenizer: str) -> None:
    single = segment(load_tokenizer(byte_tokenizer), "a", 0, 1)
    assert shown(byte_tokenizer, at_hard_span=True).shown_tokens(single, "deep") == 0


def test_segments_of_one_text_each_get_the_candidates_that_they_share(byte_tokenizer: str) -> None:
    """Two documents of one text ask under one key; what is bought once is judged for both, duplicates collapsed."""
    text = "Because the first of these follows from the second, and the second from what was said of all the others."
    asked = [
        AskedSegment(
            request=Request(
                doc_id=doc_id,
                segment_index=index,
                tier="deep",
                model="m",
                prompt="brief",
                request_key="same",
                samples=samples,
                max_tokens=64,
                expected_tokens=64.0,
                prompt_tokens=3,
                prompt_token_ids=np.empty(0, np.uint32),
                shown_tokens=4,
            ),
            document=doc_id,
            valued=True,
            source_text=f"of {doc_id}",
            continuation=f"after {doc_id}",
        )
        for doc_id, index, samples in (("a", 0, 2), ("b", 3, 3))
    ]
    rows = [
        ledger_row(sample, key=f"same/{sample}", request_key="same", sample=sample, text=text, finished_at=at)
        for sample, at in ((1, 5.0), (0, 2.0), (1, 4.0))
    ]
    judging = _JudgeFn(SelectConfig(), byte_tokenizer)
    judging.setup()
    out = list(judging.process(("same", {"asked": asked, "rows": rows})))
    judged = [one for one in out if isinstance(one, JudgedSegment)]
    assert [(one.segment_id, one.source_text, one.continuation) for one in judged] == [
        (asked[0].request.segment_id, "of a", "after a"),
        (asked[1].request.segment_id, "of b", "after b"),
    ]
    for one in judged:
        assert [(c.segment_id, c.sample) for c in one.candidates] == [(one.segment_id, 0), (one.segment_id, 1)]
    counts = [one.value for one in out if not isinstance(one, JudgedSegment)]
    assert counts == [{"requested": 2, "missing": 0}, {"requested": 3, "missing": 1}, {"generations_absent": 1}]


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def select_stage(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> Callable[..., tuple[str, manifest.Manifest, list[Candidate]]]:
    source = write_jsonl(documents())

    def go(**sections: Any) -> tuple[str, manifest.Manifest, list[Candidate]]:
        config = from_mapping(rehearsal_config(source, **sections))
        mill(config, replace=True)
        selected = manifest.require(config.output, "select")
        found = [
            c
            for family in ("kept", "rejected")
            for url in manifest.file_urls(config.output, selected, family)
            for c in storage.read_records(url, Candidate)
        ]
        return config.output, selected, found

    return go


@pytest.mark.slow
def test_the_stage_values_every_tier_and_keeps_the_best(
    select_stage: Callable[..., tuple[str, manifest.Manifest, list[Candidate]]],
) -> None:
    output, selected, candidates = select_stage()
    by_segment: dict[str, list[Candidate]] = {}
    for c in candidates:
        by_segment.setdefault(c.segment_id, []).append(c)
    assert selected.facts["value"] == "continuation_gain"
    compared = 0
    for group in by_segment.values():
        assert sum(c.kept for c in group) <= 1
        running = [c for c in group if not c.reasons or c.reasons == [NOT_CHOSEN]]
        if group[0].tier == "brief":
            assert all(c.kept for c in running), "a single one is kept whatever its value: it is mostly noise"
        elif len(running) > 1 and running[0].value is not None:
            compared += 1
            [best] = [c for c in running if c.kept]
            assert best.value == max(c.value for c in running if c.value is not None)
            assert best.gain_nats is not None and best.control_nats is not None
    assert compared > 3
    table = {row["tier"]: row for row in selected.facts["account"]}
    assert table["deep"]["gains"]["heldout_first"]["segments"] >= compared
    assert table["brief"]["gains"]["heldout_first"]["segments"] > 0
    assert sum(row["candidates"] for row in table.values()) == len(candidates) == selected.counts["candidates"]

    # The last segment's prompt ended before its tail; the others showed the whole segment.
    scored = manifest.require(output, "score")
    lengths = {
        s.segment_id: (len(s.input_ids), s.segment_index == s.num_segments - 1)
        for url in manifest.file_urls(output, scored, "segments")
        for s in storage.read_records(url, ScoredSegment)
    }
    augmented = manifest.require(output, "augment")
    requests = [
        r for url in manifest.file_urls(output, augmented, "requests") for r in storage.read_records(url, Request)
    ]
    held_back = [r for r in requests if r.shown_tokens < lengths[r.segment_id][0]]
    assert {r.tier for r in held_back} == {"brief", "deep"} and all(lengths[r.segment_id][1] for r in held_back)


@pytest.mark.slow
def test_bundling_does_not_choose(
    select_stage: Callable[..., tuple[str, manifest.Manifest, list[Candidate]]],
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
) -> None:
    _, one, _ = select_stage()
    config = from_mapping(rehearsal_config(write_jsonl(documents()), output=rehearsal_config("x")["output"] + "-two"))
    mill(config, beam_args=["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    two = manifest.require(config.output, "select")
    assert [e.sha256 for e in one.files["kept"]] == [e.sha256 for e in two.files["kept"]]


@pytest.mark.slow
def test_benchmarks_are_kept_out(
    select_stage: Callable[..., tuple[str, manifest.Manifest, list[Candidate]]], tmp_path: Any
) -> None:
    hit = next(d for d in documents() if len(d["text"].split()) > 60)
    benchmark = tmp_path / "quiz.jsonl"
    benchmark.write_text(json.dumps({"question": " ".join(hit["text"].split()[20:40])}) + "\n")
    output, selected, _ = select_stage(select={"decontaminate": {"paths": [str(benchmark)]}})
    assert selected.counts["documents_contaminated"] >= 1
    assert selected.counts["contaminated.quiz"] == selected.counts["documents_contaminated"]
    [entry] = selected.files["contaminated"]
    assert entry.rows == selected.counts["documents_contaminated"]
    packed = manifest.require(output, "pack")
    assert packed.counts["tokens_source"] == (
        manifest.require(output, "score").counts["source_tokens"] - selected.counts["source_tokens_contaminated"]
    )
