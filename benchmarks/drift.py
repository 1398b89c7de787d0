"""How often a run that is as its pilot was is called another one, and how soon one that isn't is found out.

    python -m benchmarks.drift [RUNS]

Simulated: documents of one to eight segments whose traces resemble each other, lengths that are log-normal and end at a
cap, three tiers. A pilot of 20 to 200 segments a tier, then a run of 4,000 documents a tier, looked at after every 25.
"""

from __future__ import annotations

import sys

import numpy as np

from pipelines.plan.drift import Totals, find_drifts, promises_of
from pipelines.plan.measured import MeasuredTier

TIERS = ("brief", "deep", "deepest")
RUN_DOCUMENTS, LOOK_DOCUMENTS = 4_000, 25
CAP_TOKENS = 1_500


def generations(
    random: np.random.Generator, documents: int, *, longer: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(segments,) document, tokens and whether it was cut, of one generation a segment."""
    segments = random.integers(1, 9, documents)
    document = np.repeat(np.arange(documents), segments)
    of_document = random.normal(0, 0.5, documents)[document]
    wanted = longer * np.exp(random.normal(6.0, 0.6, len(document)) + of_document)
    return document, np.minimum(wanted, CAP_TOKENS), wanted > CAP_TOKENS


def pilot_of(random: np.random.Generator, segments: int) -> MeasuredTier:
    """Segments drawn evenly from all of a corpus: most of another document each."""
    document, tokens, cut = generations(random, 40 * segments)
    chosen = random.choice(len(document), segments, replace=False)
    nothing = (0,) * segments
    return MeasuredTier(
        thought_tokens=tuple(np.round(tokens[chosen]).astype(int).tolist()),
        prompt_tokens=nothing,
        generations=(1,) * segments,
        accepted=nothing,
        cut=tuple(cut[chosen].astype(int).tolist()),
        kept=nothing,
        kept_tokens=nothing,
        heldout_nats=(None,) * segments,
        document=tuple(document[chosen].tolist()),
    )


def documents_until_found(random: np.random.Generator, pilot_segments: int, longer: float) -> int | None:
    """After how many documents a tier a run is said to have drifted; None where it never is."""
    promises = promises_of({tier: pilot_of(random, pilot_segments) for tier in TIERS})
    whole = {}
    for tier in TIERS:
        document, tokens, cut = generations(random, RUN_DOCUMENTS, longer=longer)
        whole[tier] = Totals.by_document(document, np.ones(len(document)), tokens, cut.astype(float))
    for until in range(LOOK_DOCUMENTS, RUN_DOCUMENTS + 1, LOOK_DOCUMENTS):
        seen = {
            tier: Totals(totals.generations[:until], totals.tokens[:until], totals.cut[:until])
            for tier, totals in whole.items()
        }
        if find_drifts(promises, seen):
            return until
    return None


def main(runs: int = 400) -> None:
    """Print a table."""
    print("longer by  pilot  found  documents until then, median")
    for longer in (1.0, 1.25, 1.5, 2.0):
        for pilot_segments in (20, 50, 200):
            random = np.random.default_rng(pilot_segments)
            found = [documents_until_found(random, pilot_segments, longer) for _ in range(runs)]
            there = [until for until in found if until is not None]
            median = f"{np.median(there):,.0f}" if there else ""
            print(f"{longer - 1:9.0%}  {pilot_segments:5}  {len(there) / runs:5.1%}  {median}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
