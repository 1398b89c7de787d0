"""Layout: source recovered exactly, thoughts beside their own segment, every cut where the rule says, and counted."""

import dataclasses
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import MillError, RequestError
from sharding.packing.best_fit import pack_rows, row_of
from sharding.packing.config import LAYOUTS, Layout
from sharding.packing.layout import Delimiters, LayoutCounts, SegmentTokens, lay_out, lay_out_plain
from sharding.packing.recovery import document_source, items_of, thoughts_of
from sharding.records.rows import Item, TokenType

UINT16 = np.dtype(np.uint16)
UINT32 = np.dtype(np.uint32)


def ids(text: str) -> np.ndarray:
    return np.array([ord(character) for character in text], np.uint16)


ANGLES = Delimiters(thought_open=ids("<"), thought_close=ids(">"), document_end=ids("."))


def laid_out(document, layout, max_tokens, delimiters=ANGLES):
    """The items as text, one token a character, and the counts that are not zero."""
    segments = [
        SegmentTokens(ids(source), [ids(thought) for thought in thoughts], *shown)
        for source, thoughts, *shown in document
    ]
    items, counts = lay_out("doc", segments, layout, delimiters, max_tokens, UINT16)
    texts = ["".join(map(chr, item.input_ids)) for item in items]
    return texts, {name: count for name, count in dataclasses.asdict(counts).items() if count}


TWO = [("abc", ["XY"]), ("de", ["Z"])]


@pytest.mark.parametrize(
    ("document", "layout", "max_tokens", "expected"),
    [
        (TWO, "after_document", 13, ["abcde<XY><Z>."]),
        (TWO, "after_segment", 13, ["abc<XY>de<Z>."]),
        (TWO, "before_segment", 13, ["<XY>abc<Z>de."]),
        # One token too many: between the segments, each piece with its own thoughts.
        (TWO, "after_document", 12, ["abc<XY>", "de<Z>."]),
        (TWO, "after_segment", 12, ["abc<XY>", "de<Z>."]),
        (TWO, "before_segment", 12, ["<XY>abc", "<Z>de."]),
        # Plain source fills the sequence ...
        ([("abcdefghijk", [])], "after_document", 5, ["abcde", "fghij", "k."]),
        ([("abc", ["XY"]), ("defghijk", [])], "after_document", 10, ["abcdef<XY>", "ghijk."]),
        ([("abc", []), ("de", []), ("fghijk", ["Z"])], "after_segment", 10, ["abcde", "fghijk<Z>."]),
        # ... but leaves a token for the document's end to stand behind.
        ([("abcde", [])], "after_document", 5, ["abcd", "e."]),
        # Source beside a thought is cut only when both alone are too long; the thought keeps what fits of it.
        ([("abc", []), ("defg", ["XY"])], "after_segment", 10, ["abc", "defg<XY>."]),
        ([("abcdefgh", ["XY"])], "after_document", 9, ["abcd", "efgh<XY>."]),
        ([("abcdefgh", ["XY"])], "after_segment", 9, ["abcd", "efgh<XY>."]),
        ([("abcdefgh", ["XY"])], "before_segment", 9, ["<XY>abcde", "fgh."]),
        ([("__", []), ("abcdefgh", ["XY"]), ("ij", [])], "after_segment", 9, ["__abc", "defgh<XY>", "ij."]),
        # Thoughts of one segment that are too long together share its source.
        ([("abcdef", ["XXXX", "YYYY"])], "after_segment", 10, ["abc<XXXX>", "def<YYYY>."]),
        ([("abcdef", ["XXXX", "YYYY"])], "before_segment", 10, ["<XXXX>abc", "<YYYY>def."]),
        ([("abcde", ["XXXX", "YYYY"])], "after_segment", 10, ["ab<XXXX>", "cde<YYYY>."]),
        # Thoughts crowd no source out: these two and one source token would fit, but not with all of the source.
        ([("abcd", ["XX", "YY"])], "after_segment", 11, ["ab<XX>", "cd<YY>."]),
        # Within the segment: behind what the generator saw of it, which may be nothing or all of it.
        ([("abc", ["XY"], 1), ("de", ["Z"], 2)], "at_hard_span", 13, ["a<XY>bcde<Z>."]),
        ([("abc", ["XY"], 0), ("de", ["Z"], 0)], "at_hard_span", 13, ["<XY>abc<Z>de."]),
        ([("abc", ["X", "Y", "Z"], 2)], "at_hard_span", 13, ["ab<X><Y><Z>c."]),
        ([("abc", ["XY"], 1), ("de", ["Z"], 1)], "at_hard_span", 12, ["a<XY>bc", "d<Z>e."]),
        # No other layout looks at how much that was.
        ([("abc", ["XY"], 1), ("de", ["Z"], 1)], "after_segment", 13, ["abc<XY>de<Z>."]),
        # Too long: the thought keeps as much on either side as fits, or more of one side where the other is short.
        ([("abcdefghij", ["XY"], 5)], "at_hard_span", 9, ["abc", "de<XY>fgh", "ij."]),
        ([("abcdefghij", ["XY"], 1)], "at_hard_span", 9, ["a<XY>bcde", "fghij."]),
        ([("abcdefghij", ["XY"], 9)], "at_hard_span", 10, ["abcde", "fghi<XY>j."]),
        ([("abcdefghij", ["XY"], 10)], "at_hard_span", 10, ["abcde", "fghij<XY>."]),
        # Several that are too long together share what comes from their place on, or where that is too little, all.
        ([("abcdef", ["XXXX", "YYYY"], 2)], "at_hard_span", 10, ["ab<XXXX>cd", "<YYYY>ef."]),
        ([("abcdef", ["XXXX", "YYYY"], 5)], "at_hard_span", 10, ["abc<XXXX>", "def<YYYY>."]),
        # An empty segment leaves no trace.
        ([("ab", []), ("", []), ("c", ["X"])], "after_document", 20, ["abc<X>."]),
    ],
)
def test_layout_table(document, layout, max_tokens, expected):
    texts, counts = laid_out(document, layout, max_tokens)
    assert texts == expected
    assert not {"thoughts_cut", "thoughts_dropped", "thought_tokens_lost", "documents_empty"} & set(counts)
    assert counts.get("source_cuts", 0) == len(expected) - 1


@pytest.mark.parametrize(
    ("document", "max_tokens", "expected", "lost"),
    [
        # A thought is cut when it leaves no room for one source token.
        (
            [("ab", ["UVWXYZ"])],
            8,
            ["a", "b<UVWX>."],
            {"thoughts": 1, "thoughts_cut": 1, "thought_tokens_lost": 2, "thought_tokens": 4},
        ),
        # No source left for the second thought.
        (
            [("a", ["XXXX", "YYY"])],
            8,
            ["a<XXXX>."],
            {"thoughts": 1, "thoughts_dropped": 1, "thought_tokens_lost": 3, "thought_tokens": 4},
        ),
        # Nothing to stand beside, and nothing to say.
        (
            [("", ["X"]), ("ab", [""])],
            8,
            ["ab."],
            {"thoughts_dropped": 2, "thought_tokens_lost": 1},
        ),
        ([("", ["X"])], 8, [], {"documents_empty": 1, "thoughts_dropped": 1, "thought_tokens_lost": 1}),
        ([], 8, [], {"documents_empty": 1}),
    ],
)
def test_what_is_lost_is_counted(document, max_tokens, expected, lost):
    texts, counts = laid_out(document, "after_document", max_tokens)
    assert texts == expected
    names = {"thoughts", "thoughts_cut", "thoughts_dropped", "thought_tokens_lost", "thought_tokens", "documents_empty"}
    assert {name: count for name, count in counts.items() if name in names} == lost


def test_counts_of_a_cut_document_and_their_sum():
    document = [("abcdefghij", []), ("kl", ["XY"]), ("mn", ["Z"])]
    texts, counts = laid_out(document, "after_document", 8)
    assert texts == ["abcdefgh", "ijkl<XY>", "mn<Z>."]
    assert counts == {
        "documents": 1,
        "documents_cut": 1,
        "items": 3,
        "source_cuts": 2,
        "segments_cut": 1,
        "thoughts": 2,
        "source_tokens": 14,
        "thought_tokens": 3,
        "delimiter_tokens": 5,
    }
    total = LayoutCounts(**counts) + LayoutCounts(documents=1, documents_empty=1)
    assert (total.documents, total.documents_empty, total.items, total.thought_tokens) == (2, 1, 3, 3)


def test_delimiters_may_be_empty():
    texts, counts = laid_out(TWO, "after_segment", 13, Delimiters())
    assert texts == ["abcXYdeZ"]
    assert "delimiter_tokens" not in counts


def test_types_starts_and_id_type():
    segments = [SegmentTokens(ids("abcd"), [ids("X")]), SegmentTokens(ids("ef"), [ids("Y")])]
    first, second = lay_out("doc", segments, "before_segment", ANGLES, 8, UINT32)[0]
    assert (first.source_start, second.source_start) == (0, 4)
    assert first.token_type.tolist() == [3, 2, 3, 1, 1, 1, 1]
    assert second.token_type.tolist() == [3, 2, 3, 1, 1, 3]
    assert (second.input_ids.dtype, second.token_type.dtype) == (np.uint32, np.uint8)


@pytest.mark.parametrize("outside", [-1, 4])
def test_thoughts_outside_of_their_segment_are_refused(outside):
    segment = SegmentTokens(ids("abc"), [ids("X")], outside)
    with pytest.raises(ValueError, match=f"behind {outside} of 3 tokens"):
        lay_out("doc", [segment], "at_hard_span", ANGLES, 64, UINT16)


@pytest.mark.parametrize("bad", [65_536, -1])
def test_an_id_that_does_not_fit_is_never_wrapped_around(bad):
    with pytest.raises(ValueError, match="uint16"):
        lay_out("doc", [SegmentTokens(np.array([1, bad]))], "after_document", ANGLES, 64, UINT16)


def test_delimiters_that_fill_a_sequence_are_refused():
    assert laid_out([("ab", ["XY"])], "after_segment", 5)[0] == ["a", "b<X>."]
    with pytest.raises(RequestError, match=r"pack\.sequence_length: 4 .* at least 5"):
        laid_out([("ab", [])], "after_segment", 4)


# --- invariants -------------------------------------------------------------------------------------------------------

THOUGHT_BASE = 100_000  # ids of thought t are THOUGHT_BASE * (t + 1) + 0, 1, 2, ...; source ids are 0, 1, 2, ...
DELIMITER_BASE = 50_000

segment_shapes = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(0, 40), max_size=3), st.integers(0, 40)), min_size=0, max_size=6
)


@dataclasses.dataclass
class Case:
    """A document of arbitrary shape whose every token has an id of its own, laid out."""

    segments: list[SegmentTokens]
    delimiters: Delimiters
    max_tokens: int
    layout: Layout
    items: list[Item]
    counts: LayoutCounts

    def of_type(self, item: Item, kind: TokenType) -> np.ndarray:
        return item.input_ids[item.token_type == kind]

    @property
    def wrap(self) -> int:
        return len(self.delimiters.thought_open) + len(self.delimiters.thought_close)

    @property
    def filled(self) -> list[SegmentTokens]:
        return [segment for segment in self.segments if len(segment.input_ids)]

    def thoughts(self, segment: SegmentTokens) -> list[np.ndarray]:
        return [thought for thought in segment.thoughts if len(thought)]

    def num_tokens(self, segment: SegmentTokens) -> int:
        """Of the segment with its thoughts, delimiters, and the document's end if it is the last."""
        end = len(self.delimiters.document_end) if segment is self.filled[-1] else 0
        return len(segment.input_ids) + sum(len(t) + self.wrap for t in self.thoughts(segment)) + end

    def item_of_source(self, token: int) -> int:
        starts = [item.source_start for item in self.items]
        return int(np.searchsorted(starts, token, side="right")) - 1


@st.composite
def cases(draw, layout=None):
    shapes = draw(segment_shapes)
    opening, closing, ending = draw(st.tuples(*[st.integers(0, 2)] * 3))
    max_tokens = draw(st.integers(opening + closing + ending + 2, 90))
    segments, next_source, next_thought = [], 0, 0
    for num_source, thought_lengths, shown in shapes:
        thoughts = []
        for length in thought_lengths:
            next_thought += 1
            thoughts.append(np.arange(length, dtype=np.uint32) + THOUGHT_BASE * next_thought)
        source = np.arange(num_source, dtype=np.uint32) + next_source
        segments.append(SegmentTokens(source, thoughts, min(shown, num_source)))
        next_source += num_source
    base = DELIMITER_BASE
    delimiters = Delimiters(
        thought_open=np.arange(opening, dtype=np.uint32) + base,
        thought_close=np.arange(closing, dtype=np.uint32) + base + 10,
        document_end=np.arange(ending, dtype=np.uint32) + base + 20,
    )
    layout = layout or draw(st.sampled_from(list(LAYOUTS)))
    laid_out = lay_out("doc", segments, layout, delimiters, max_tokens, UINT32)
    return Case(segments, delimiters, max_tokens, layout, *laid_out)


@given(cases())
@settings(max_examples=300)
def test_source_is_recovered_and_every_item_fits(case):
    num_source = sum(len(segment.input_ids) for segment in case.segments)
    recovered = [case.of_type(item, TokenType.SOURCE) for item in case.items]
    assert [token for source in recovered for token in source] == list(range(num_source))
    for item, source in zip(case.items, recovered, strict=True):
        assert item.source_start == source[0]
        assert len(item.input_ids) == len(item.token_type) <= case.max_tokens
        assert TokenType.PADDING not in item.token_type


@given(cases())
@settings(max_examples=300)
def test_only_what_is_too_long_is_cut(case):
    fits = sum(case.num_tokens(segment) for segment in case.filled) <= case.max_tokens
    if fits:
        assert len(case.items) == bool(case.filled)
    else:
        assert len(case.items) > 1 or case.counts.thought_tokens_lost
    for segment in case.filled:
        # Source with thoughts that fit beside it is never cut.
        if case.thoughts(segment) and case.num_tokens(segment) <= case.max_tokens:
            first, last = int(segment.input_ids[0]), int(segment.input_ids[-1])
            assert case.item_of_source(first) == case.item_of_source(last)
    plain = {int(token) for segment in case.filled if not case.thoughts(segment) for token in segment.input_ids}
    for item, following in pairwise(case.items):
        # A cut before or in plain source comes where the sequence is full, but for the last token and the end.
        only_end_left = following is case.items[-1] and (following.token_type == TokenType.SOURCE).sum() == 1
        if following.source_start in plain:
            assert len(item.input_ids) == case.max_tokens or only_end_left


@given(cases())
@settings(max_examples=300)
def test_thoughts_stand_whole_in_an_item_with_their_segment(case):
    placed = {}
    for number, item in enumerate(case.items):
        for token in case.of_type(item, TokenType.THOUGHT):
            placed.setdefault(int(token) // THOUGHT_BASE, []).append((number, int(token) % THOUGHT_BASE))
    num_cut = 0
    for segment in case.segments:
        end = len(case.delimiters.document_end) if case.filled and segment is case.filled[-1] else 0
        for thought in case.thoughts(segment):
            tokens = placed.pop(int(thought[0]) // THOUGHT_BASE, [])
            if not tokens:
                continue
            assert len({number for number, _ in tokens}) == 1
            assert [position for _, position in tokens] == list(range(len(tokens)))
            # Cut only as far as one source token, the delimiters and the end need.
            longest = case.max_tokens - case.wrap - end - 1
            assert len(tokens) == min(len(thought), longest)
            num_cut += len(tokens) < len(thought)
            source = case.of_type(case.items[tokens[0][0]], TokenType.SOURCE)
            assert np.isin(source, segment.input_ids).any()
    assert not placed
    assert case.counts.thoughts_cut == num_cut


@given(cases())
@settings(max_examples=300)
def test_counts_agree_with_the_items(case):
    counts = case.counts
    of_type = {kind: sum(len(case.of_type(item, kind)) for item in case.items) for kind in TokenType}
    given_thoughts = [thought for segment in case.segments for thought in segment.thoughts]
    assert (counts.documents, counts.documents_empty, counts.items) == (1, not case.filled, len(case.items))
    assert (counts.documents_cut, counts.source_cuts) == (len(case.items) > 1, max(0, len(case.items) - 1))
    assert counts.source_tokens == of_type[TokenType.SOURCE]
    assert counts.thought_tokens == of_type[TokenType.THOUGHT]
    assert counts.delimiter_tokens == of_type[TokenType.DELIMITER]
    assert counts.thoughts + counts.thoughts_dropped == len(given_thoughts)
    assert counts.thought_tokens + counts.thought_tokens_lost == sum(map(len, given_thoughts))
    segment_starts = {int(segment.input_ids[0]) for segment in case.filled}
    assert counts.segments_cut == sum(item.source_start not in segment_starts for item in case.items)
    # Dropped is only what had no source token left to stand beside.
    for segment in case.filled:
        if len(segment.input_ids) >= len(segment.thoughts):
            assert all(
                any(np.isin(thought[:1], item.input_ids).any() for item in case.items)
                for thought in case.thoughts(segment)
            )


@given(cases())
def test_delimiters_stand_where_they_belong(case):
    """Taking sources and thoughts out leaves opening and closing in turn, and the end once, at the very end."""
    opening, closing, ending = (
        case.delimiters.thought_open.tolist(),
        case.delimiters.thought_close.tolist(),
        case.delimiters.document_end.tolist(),
    )
    for item in case.items:
        rest = item.input_ids.tolist()
        if item is case.items[-1] and ending:
            assert rest[-len(ending) :] == ending
            rest = rest[: -len(ending)]
        assert not set(rest) & set(ending)
        starts = [i for i, token in enumerate(rest) if token >= THOUGHT_BASE and token % THOUGHT_BASE == 0]
        for start in starts:
            stop = start + sum(token // THOUGHT_BASE == rest[start] // THOUGHT_BASE for token in rest)
            assert rest[start - len(opening) : start] == opening
            assert rest[stop : stop + len(closing)] == closing
        num_delimiters = sum(DELIMITER_BASE <= token < THOUGHT_BASE for token in rest)
        assert num_delimiters == len(starts) * case.wrap


def neighbours(case: Case, item: Item):
    """For each thought in the item: its number, and the last source token before and the first after it, or None."""
    source_at = np.flatnonzero(item.token_type == TokenType.SOURCE)
    is_start = (item.token_type == TokenType.THOUGHT) & (item.input_ids % THOUGHT_BASE == 0)
    for at in np.flatnonzero(is_start):
        before, after = source_at[source_at < at], source_at[source_at > at]
        yield (
            int(item.input_ids[at]) // THOUGHT_BASE,
            int(item.input_ids[before[-1]]) if before.size else None,
            int(item.input_ids[after[0]]) if after.size else None,
        )


def segment_of_thought(case: Case) -> dict[int, SegmentTokens]:
    return {int(t[0]) // THOUGHT_BASE: segment for segment in case.segments for t in case.thoughts(segment)}


@given(cases(layout="after_document"))
def test_after_document_is_source_then_thoughts(case):
    for item in case.items:
        found = list(neighbours(case, item))
        assert all(after is None for _, _, after in found)
        assert [number for number, _, _ in found] == sorted(number for number, _, _ in found)


@given(cases(layout="after_segment"))
def test_after_segment_follows_its_own_source(case):
    owners = segment_of_thought(case)
    for item in case.items:
        for number, before, _ in neighbours(case, item):
            assert before in owners[number].input_ids
    # The last thought of a segment has the segment's very end before it.
    for segment in case.filled:
        found = [n for item in case.items for n in neighbours(case, item) if owners[n[0]] is segment]
        if found and len(segment.input_ids) >= len(case.thoughts(segment)):
            assert found[-1][1] == segment.input_ids[-1]


@given(cases(layout="before_segment"))
def test_before_segment_leads_its_own_source(case):
    owners = segment_of_thought(case)
    for item in case.items:
        for number, _, after in neighbours(case, item):
            assert after in owners[number].input_ids
    # The first thought of a segment has the segment's very beginning after it.
    for segment in case.filled:
        found = [n for item in case.items for n in neighbours(case, item) if owners[n[0]] is segment]
        if found:
            assert found[0][2] == segment.input_ids[0]


@given(cases(layout="at_hard_span"))
@settings(max_examples=300)
def test_at_hard_span_stands_behind_what_was_shown(case):
    owners = segment_of_thought(case)
    for item in case.items:
        for number, before, after in neighbours(case, item):
            owner = owners[number]
            shown, hidden = owner.input_ids[: owner.shown_tokens], owner.input_ids[owner.shown_tokens :]
            if case.num_tokens(owner) <= case.max_tokens:
                # In its place, with the segment on both sides of it.
                assert not shown.size or before == shown[-1]
                assert not hidden.size or after == hidden[0]
            elif hidden.size >= len(case.thoughts(owner)):
                assert after in hidden, "it stands before what its generator had not seen"
            else:
                assert before in owner.input_ids or after in owner.input_ids


def expected_places(case: Case) -> dict[int, int]:
    """For each thought, how many source tokens stand before it where its segment fits; None where that is open."""
    places, start = {}, 0
    for segment in case.segments:
        end = start + len(segment.input_ids)
        place = {
            "after_document": None,
            "after_segment": end,
            "before_segment": start,
            "at_hard_span": start + segment.shown_tokens,
        }[case.layout]
        for thought in case.thoughts(segment):
            fits = case.filled and segment in case.filled and case.num_tokens(segment) <= case.max_tokens
            places[int(thought[0]) // THOUGHT_BASE] = place if fits else None
        start = end
    return places


@given(cases())
@settings(max_examples=250)
def test_rows_give_source_and_thoughts_back(case):
    """Through packing and back: the source whole, every thought in its place, in its order, by itself."""
    rows = [*pack_rows(case.items, case.max_tokens), row_of([], case.max_tokens, UINT32, with_surprisal=False)]
    items = sorted((item for row in rows for item in items_of(row)), key=lambda item: item.source_start)
    assert items == case.items
    if items:
        num_source = sum(len(segment.input_ids) for segment in case.segments)
        assert document_source(items[::-1]).tolist() == list(range(num_source))
        assert document_source([*items, *items]).tolist() == list(range(num_source))
    found = [thought for item in items for thought in thoughts_of(item)]
    whole = {int(t[0]) // THOUGHT_BASE: t for segment in case.segments for t in case.thoughts(segment)}
    places = expected_places(case)
    if not case.wrap:
        # Without delimiters, neighbours are told apart by their ids alone.
        tokens = [int(token) for thought in found for token in thought.input_ids]
        assert len(tokens) == case.counts.thought_tokens == len(set(tokens))
        return
    numbers = [int(thought.input_ids[0]) // THOUGHT_BASE for thought in found]
    assert numbers == sorted(set(numbers)) and len(numbers) == case.counts.thoughts
    for number, thought in zip(numbers, found, strict=True):
        original = whole[number]
        assert thought.input_ids.tolist() == original[: len(thought.input_ids)].tolist()
        if places[number] is not None:
            assert thought.place == places[number]
            assert len(thought.input_ids) == len(original)
    assert set(whole) - set(numbers) == set() or case.counts.thoughts_dropped


def test_what_does_not_go_together_is_not_put_together():
    items, _ = lay_out("doc", [SegmentTokens(ids("abcdefgh"))], "after_document", ANGLES, 5, UINT16)
    first, second = items
    assert "".join(map(chr, document_source(items))) == "abcdefgh"
    for wrong, said in [
        ([second], "go on at token 5, not at 0"),
        ([first, first, second], "2 items begin at token 0, 1 at token 5"),
        ([first, msgspec.structs.replace(first, input_ids=ids("abXde"))], "its copies differ from token 0 on"),
    ]:
        with pytest.raises(MillError, match=said):
            document_source(wrong)


# --- documents that begin with a token --------------------------------------------------------------------------------

STARTED = dataclasses.replace(ANGLES, document_start=ids("^"))


@pytest.mark.parametrize(
    ("document", "layout", "max_tokens", "expected"),
    [
        (TWO, "after_document", 14, ["^abcde<XY><Z>."]),
        (TWO, "after_document", 13, ["^abc<XY>", "de<Z>."]),
        (TWO, "before_segment", 14, ["^<XY>abc<Z>de."]),
        # Only the first piece has it, and only the last the end.
        ([("abcdefghijk", [])], "after_document", 6, ["^abcde", "fghij", "k."]),
        ([("abcde", [])], "after_document", 6, ["^abcd", "e."]),
    ],
)
def test_a_document_may_begin_with_a_token(document, layout, max_tokens, expected):
    texts, counts = laid_out(document, layout, max_tokens, STARTED)
    assert texts == expected
    if not any(thoughts for _, thoughts in document):
        source = ids("".join(text for text, _ in document))
        plain, plain_counts = lay_out_plain("doc", source, np.array([0]), STARTED, max_tokens, UINT16)
        assert ["".join(map(chr, item.input_ids)) for item in plain] == expected
        assert {k: v for k, v in dataclasses.asdict(plain_counts).items() if v} == counts


def test_a_beginning_needs_room():
    with pytest.raises(RequestError, match=r"pack\.document_start and pack\.document_end; at least 6 needed"):
        laid_out(TWO, "after_document", 5, STARTED)
