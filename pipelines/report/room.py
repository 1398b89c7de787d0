"""The reading room: a few documents, cut to a size a page can hold, as what the template shows.

Every token is an element of its own with its nats, so a page's size is that of its tokens: `MAX_TOKENS` of a document,
`MAX_BYTES` of all, and of a long thought its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipelines.documents.blocks import FULL_COLOUR_NATS, DocumentView, Mark, Source, Thought, Unit
from pipelines.terminal import counted
from sharding.records.types import Candidate

MAX_DOCUMENTS = 16
MAX_TOKENS = 1_500
"""Source tokens shown of a document."""

MAX_CHARACTERS = 4_000
"""Characters shown of a thought."""

MAX_CANDIDATES = 8
"""Candidates shown of a segment."""

MAX_BYTES = 3_500_000
"""Of the documents' HTML, all together."""

LEVELS = 10


@dataclass(frozen=True, kw_only=True)
class Card:
    """A candidate beside the others."""

    candidate: Candidate
    text: str
    cut: bool
    reasons: Sequence[str]

    @property
    def outcomes(self) -> list[str]:
        """What the candidate can be found by: that it was kept, or every reason against it."""
        return list(self.reasons) or ["kept"]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One thing the reading room shows after another.

    Attributes:
        kind: "source", "thought", "cut", "end" or "gap".
        title: what stands over it.
        tokens: of a source, as HTML.
        text: of a thought or a mark, or what a gap left out.
        cards: the candidates of the segment that ends here.
        more: how many candidates more there are.
    """

    kind: str
    title: str = ""
    tier: str = ""
    difficulty_nats: float = 0.0
    opens: bool = False
    tokens: str = ""
    text: str = ""
    before: str = ""
    after: str = ""
    note: str = ""
    cards: Sequence[Card] = ()
    more: int = 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A document in the reading room.

    Attributes:
        source: the name of the source it came from, "" where a run has but one.
    """

    doc_id: str
    source: str
    fate: str
    facts: Sequence[str]
    passages: Sequence[Passage]

    @property
    def tiers(self) -> list[str]:
        """The tiers of the segments that are shown."""
        return sorted({passage.tier for passage in self.passages if passage.kind == "source" and passage.tier})

    @property
    def outcomes(self) -> list[str]:
        """What became of the candidates that are shown."""
        return sorted({outcome for passage in self.passages for card in passage.cards for outcome in card.outcomes})

    @property
    def size_bytes(self) -> int:
        """About how much HTML it is."""
        return sum(
            400 + len(p.tokens) + len(p.text) + sum(1_000 + len(card.text) for card in p.cards) for p in self.passages
        )


def reading(document: DocumentView, threshold_nats: float) -> Reading:
    """The document as the page shows it."""
    shown = _shown_segments(document)
    left_out = len(document.segments) - len(shown)
    difficulty = sum(segment.difficulty_nats for segment in document.segments)
    facts = [
        f"{document.num_tokens:,} tokens",
        counted(len(document.segments), "segment"),
        f"{difficulty:,.0f} nats above {threshold_nats:g}",
        counted(document.thoughts, "thought"),
    ]
    if left_out:
        facts.append(f"{counted(len(shown), 'segment')} shown here")
    return Reading(
        doc_id=document.doc_id,
        source=document.source,
        fate=document.fate,
        facts=facts,
        passages=list(_passages(document, shown)),
    )


def _shown_segments(document: DocumentView) -> set[int]:
    """A run of segments of at most `MAX_TOKENS`: all, or from the first that has candidates on; at least one."""
    if document.num_tokens <= MAX_TOKENS:
        return {segment.index for segment in document.segments}
    start = next((i for i, segment in enumerate(document.segments) if segment.candidates), 0)
    shown: set[int] = set()
    tokens = 0
    for segment in document.segments[max(0, start - 1) :]:
        tokens += segment.num_tokens
        if shown and tokens > MAX_TOKENS and segment.index > start:
            break
        shown.add(segment.index)
    return shown


def _passages(document: DocumentView, shown: set[int]) -> Iterator[Passage]:
    skipped = 0
    for block in document.blocks:
        here = not isinstance(block, Source) or block.segment.index in shown
        if isinstance(block, Thought):
            here = block.candidate.segment_index in shown
        if isinstance(block, Source) and not here:
            skipped += sum(unit.tokens for unit in block.units)
            continue
        if not here or (isinstance(block, Mark) and block.kind == "cut" and skipped):
            continue
        if skipped:
            yield Passage(kind="gap", text=f"{skipped:,} tokens are not shown here")
            skipped = 0
        yield _passage(block)
    if skipped:
        yield Passage(kind="gap", text=f"{skipped:,} tokens are not shown here")


def _passage(block: Source | Thought | Mark) -> Passage:
    if isinstance(block, Mark):
        return Passage(kind=block.kind, text=block.text)
    if isinstance(block, Thought):
        candidate = block.candidate
        text, cut = _cut(candidate.text)
        lost = [f"{block.tokens_lost:,} tokens were cut from its end"] if block.tokens_lost else []
        return Passage(
            kind="thought",
            title=f"thought about segment {candidate.segment_index}",
            tier=candidate.tier,
            text=text,
            before=block.before.strip("\n"),
            after=block.after.strip("\n"),
            note="; ".join([*lost, *(["only its beginning is shown"] if cut else [])]),
        )
    segment = block.segment
    candidates = list(segment.candidates) if block.closes else []
    return Passage(
        kind="source",
        title=f"segment {segment.index}" + ("" if block.opens else ", continued"),
        tier=segment.tier or "",
        difficulty_nats=segment.difficulty_nats,
        opens=block.opens,
        tokens=coloured(block.units[:MAX_TOKENS]),
        note="only its beginning is shown" if len(block.units) > MAX_TOKENS else "",
        cards=[_card(candidate) for candidate in candidates[:MAX_CANDIDATES]],
        more=max(0, len(candidates) - MAX_CANDIDATES),
    )


def _card(candidate: Candidate) -> Card:
    text, cut = _cut(candidate.text)
    reasons = [reason.replace("_", " ") for reason in candidate.reasons]
    return Card(candidate=candidate, text=text, cut=cut, reasons=reasons)


def _cut(text: str) -> tuple[str, bool]:
    return text[:MAX_CHARACTERS], len(text) > MAX_CHARACTERS


def level(nats: float) -> int:
    """The strength of a token's colour, 0 to LEVELS - 1."""
    return min(LEVELS - 1, int(LEVELS * min(FULL_COLOUR_NATS, max(0.0, nats)) / FULL_COLOUR_NATS))


def coloured(units: Sequence[Unit]) -> Markup:
    """Tokens as elements: classes of what the measure says and of entropy, the numbers as data."""
    parts = []
    for unit in units:
        memory = "" if unit.memory is None else f' data-m="{unit.memory:.2f}"'
        beyond = "" if unit.beyond is None else f' data-b="{unit.beyond:.2f}"'
        count = "" if unit.tokens == 1 else f' data-n="{unit.tokens}"'
        parts.append(
            f'<i class="a{level(unit.measured)} e{level(unit.entropy)}" data-s="{unit.nats:.2f}" '
            f'data-e="{unit.entropy:.2f}"{memory}{beyond}{count}>{escape(unit.text)}</i>'
        )
    return Markup("".join(parts))  # what comes from the corpus was escaped
