"""How documents look in the terminal: tokens coloured by their nats, thoughts in their place, candidates side by side.

Where there are no colours, hard tokens stand in ⟦brackets⟧.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from pipelines.documents.blocks import (
    FULL_COLOUR_NATS,
    DocumentView,
    Mark,
    Segment,
    Source,
    Thought,
    Unit,
)
from pipelines.terminal import counted, visible
from sharding.records.types import Candidate

_DARKEST, _STRONGEST = (40, 30, 18), (190, 76, 20)
_INK = "rgb(245,242,236)"
_CARD_WIDTH = 46


def document(view: DocumentView, shown: set[int], threshold_nats: float, plain: bool) -> RenderableType:
    """The segments `shown` of a document, by their index."""
    facts = (
        f"{counted(view.num_tokens, 'token')} in {counted(len(view.segments), 'segment')}, "
        f"{counted(view.thoughts, 'thought')}"
    )
    parts: list[RenderableType] = [heading(view.doc_id, facts, plain)]
    if view.fate:
        parts.append(Text(view.fate, "" if plain else "yellow"))
    skipped = 0
    for block in view.blocks:
        if isinstance(block, Mark):
            if not skipped:
                parts.append(mark(block, plain))
            continue
        index = block.segment.index if isinstance(block, Source) else block.candidate.segment_index
        if index not in shown:
            skipped += sum(unit.tokens for unit in block.units) if isinstance(block, Source) else 0
            continue
        if skipped:
            parts.append(_dim(f"… {skipped:,} tokens …", plain))
            skipped = 0
        parts += _source(block, threshold_nats, plain) if isinstance(block, Source) else [_thought(block, plain)]
    if skipped:
        parts.append(_dim(f"… {skipped:,} tokens …", plain))
    return Group(*parts, Text(""))


def heading(doc_id: str, facts: str, plain: bool) -> RenderableType:
    """The line above a document."""
    name = visible(doc_id)
    return Text(f"=== {name}: {facts}") if plain else Rule(Text.assemble((name, "bold"), f"  {facts}"), align="left")


def mark(mark: Mark, plain: bool) -> RenderableType:
    """What is no text of the document."""
    if mark.kind == "cut":
        return _dim("--- cut: what follows is in another training sequence ---", plain)
    return _dim(visible(mark.text).strip("\n"), plain)


def _source(block: Source, threshold_nats: float, plain: bool) -> list[RenderableType]:
    segment = block.segment
    title = f"segment {segment.index}" + ("" if block.opens else ", continued")
    if block.opens:
        tier = f", {segment.tier}" if segment.tier else ""
        title += f"{tier}, {segment.difficulty_nats:,.0f} nats above {threshold_nats:g}"
    parts: list[RenderableType] = [Text(f"\n--- {title}" if plain else f"\n{title}", "" if plain else "bold cyan")]
    parts.append(bracketed(block.units, threshold_nats) if plain else coloured(block.units))
    if block.closes and segment.candidates:
        parts += _candidates(segment, plain)
    return parts


def coloured(units: Sequence[Unit]) -> Text:
    """Tokens on a ground as strong as their nats."""
    text = Text()
    for unit in units:
        strength = min(1.0, max(0.0, unit.measured / FULL_COLOUR_NATS))
        ground = ",".join(str(round(a + (b - a) * strength)) for a, b in zip(_DARKEST, _STRONGEST, strict=True))
        style = f"{_INK} on rgb({ground})" if strength >= 0.1 else ""
        text.append(visible(unit.text), style)
    return text


def bracketed(units: Sequence[Unit], threshold_nats: float) -> Text:
    """Tokens as plain text, those that count towards difficulty in ⟦brackets⟧, neighbours together."""
    parts: list[str] = []
    inside = False
    for unit in units:
        if (unit.difficulty > threshold_nats) != inside:
            inside = not inside
            parts.append("⟦" if inside else "⟧")
        parts.append(visible(unit.text))
    return Text("".join(parts) + "⟧" * inside)


def _thought(block: Thought, plain: bool) -> RenderableType:
    candidate = block.candidate
    title = f"thought about segment {candidate.segment_index}, {candidate.tier}"
    lost = f" [{block.tokens_lost:,} tokens were cut from its end]" if block.tokens_lost else ""
    return thought_box(title, block.before, candidate.text, block.after, plain, lost)


def thought_box(title: str, before: str, text: str, after: str, plain: bool, lost: str = "") -> RenderableType:
    """A thought in its place, between its delimiters; `lost` is said behind it."""
    before, text, after = (visible(part).strip("\n") for part in (before, text, after))
    if plain:
        return Text("\n".join(["", f"--- {title}", *filter(None, (before, text + lost, after))]))
    body = Text("\n").join(Text(p, s) for p, s in ((before, "dim"), (text + lost, ""), (after, "dim")) if p)
    return Padding(Panel(body, title=Text(title), title_align="left", border_style="magenta"), (1, 0, 0, 0))


def _candidates(segment: Segment, plain: bool) -> list[RenderableType]:
    kept = sum(candidate.kept for candidate in segment.candidates)
    count = len(segment.candidates)
    title = f"{counted(count, 'candidate')}, {kept} kept"
    if plain:
        return [Text(title), *(Text(_plain_card(candidate)) for candidate in segment.candidates)]
    cards = [_card(candidate) for candidate in segment.candidates]
    return [Text(f"\n{title}", "bold"), Columns(cards, width=_CARD_WIDTH) if count > 1 else cards[0]]


def _card(candidate: Candidate) -> Panel:
    colour = "green" if candidate.kept else "red"
    text = Text.assemble(("\n".join(_lines(candidate)), "dim"), "\n\n", visible(candidate.text))
    return Panel(text, title=Text(_verdict(candidate)), title_align="left", border_style=colour, width=_CARD_WIDTH)


def _plain_card(candidate: Candidate) -> str:
    lines = [f"* {_verdict(candidate)}", *_lines(candidate), visible(candidate.text)]
    return "\n  ".join("\n".join(lines).split("\n"))


def _verdict(candidate: Candidate) -> str:
    if candidate.kept:
        return f"sample {candidate.sample}: kept"
    return f"sample {candidate.sample}: rejected, {', '.join(candidate.reasons)}"


def _lines(candidate: Candidate) -> list[str]:
    """What a candidate is worth and where it comes from."""
    worth = [
        f"{name} {number:+.3f}"
        for name, number in (
            ("value", candidate.value),
            ("held-out gain", candidate.heldout_nats),
            ("raw gain", candidate.gain_nats),
            ("control", candidate.control_nats),
        )
        if number is not None
    ]
    return [
        ", ".join(worth) or "not valued",
        f"{candidate.thought_tokens:,} tokens, {candidate.closed}; {candidate.model}, {candidate.prompt}",
    ]


def _dim(text: str, plain: bool) -> Text:
    return Text(text, "" if plain else "dim")
