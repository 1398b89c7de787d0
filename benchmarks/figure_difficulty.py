"""Draws docs/difficulty.png: real text coloured by its nats, with the tiers its segments got.

    python -m benchmarks.figure_difficulty out/demo docs/difficulty.png

Reads a finished run; shows the opening lines of the segments of the document whose segments got the most tiers.
"""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np

from difficulty.budget.allocation import Allocation
from sharding import storage
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.records.types import ScoredSegment
from sharding.storage import manifest

COLUMNS, LINES_PER_SEGMENT, MAX_SEGMENTS = 92, 9, 4
CHARACTER_INCHES, LINE_INCHES = 0.0935, 0.21
FULL_COLOUR_NATS = 10.0


def main(output: str, target: str) -> None:
    """Draw the figure of the run in `output` into the file `target`."""
    import msgspec

    scored = manifest.require(output, "score")
    tokenizer = load_tokenizer(scored.config["tokenizer"])
    plan = msgspec.json.decode(storage.read_bytes(storage.join(output, "difficulty.json")))
    allocation = Allocation.from_json(plan["allocation"])
    documents: dict[str, list[tuple[ScoredSegment, str]]] = {}
    for url in manifest.file_urls(output, scored, "segments"):
        for segment in storage.read_records(url, ScoredSegment):
            tier = allocation.tiers[allocation.tier_of(segment.segment_id, segment.difficulty_nats)].name
            documents.setdefault(segment.doc_id, []).append((segment, tier))
    shown = max(documents.values(), key=lambda segments: (len({tier for _, tier in segments}), len(segments)))
    draw(list(islice(shown, MAX_SEGMENTS)), tokenizer, target)


def draw(segments: list[tuple[ScoredSegment, str]], tokenizer: TextTokenizer, target: str) -> None:
    """Lay the tokens out in a fixed-width font, each on a background as strong as its nats."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    lines = len(segments) * (LINES_PER_SEGMENT + 2)
    figure = pyplot.figure(figsize=(COLUMNS * CHARACTER_INCHES, lines * LINE_INCHES), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1, COLUMNS + 1)
    axes.set_ylim(lines, 0)
    axes.axis("off")
    colours = pyplot.get_cmap("OrRd")
    for number, (segment, tier) in enumerate(segments):
        top = number * (LINES_PER_SEGMENT + 2)
        title = f"{segment.segment_id}   {segment.difficulty_nats:,.0f} nats above the threshold   tier: {tier}"
        axes.text(0, top + 0.8, title, weight="bold", size=8, va="center", family="DejaVu Sans")
        row, column = top + 1, 0
        for text, nats in _characters(segment, tokenizer):
            if text == "\n" or column >= COLUMNS:
                row, column = row + 1, 0
            if row > top + LINES_PER_SEGMENT:
                break
            if text != "\n":
                colour = colours(min(nats / FULL_COLOUR_NATS, 1.0) * 0.8)
                axes.add_patch(Rectangle((column, row), 1, 1, color=colour, linewidth=0))
                axes.text(column + 0.5, row + 0.52, text, size=7.2, ha="center", va="center", family="DejaVu Sans Mono")
                column += 1
    figure.savefig(target)


def _characters(segment: ScoredSegment, tokenizer: TextTokenizer) -> list[tuple[str, float]]:
    """Each character with the nats of the token that its first byte belongs to."""
    nats = np.repeat(segment.surprisal_nats.astype(float), tokenizer.byte_lengths(segment.input_ids))
    text = tokenizer.decode(segment.input_ids)
    starts = np.cumsum([0, *(len(character.encode()) for character in text)])[:-1]
    return [(character, float(nats[start])) for character, start in zip(text, starts.tolist(), strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:3])
