"""How often a run that is as its pilot was is called another one, and how soon one that isn't is found out.

    python -m benchmarks.drift [RUNS]

Simulated: documents of one to eight segments whose traces resemble each other, lengths that are log-normal and end at a
cap, gates that reject one trace in ten and are asked about every eighth document, three tiers. A pilot of 20 to 200
segments a tier, then a run of 4,000 documents a tier, looked at after every 25.
"""

from __future__ import annotations

import sys

import numpy as np

from pipelines.plan.drift import Totals, find_drifts, promises_of
from pipelines.plan.measured import MeasuredTier

TIERS = ("brief", "deep", "deepest")
RUN_DOCUMENTS, LOOK_DOCUMENTS = 4_000, 25
CAP_TOKENS = 1_500
JUDGED_EVERY = 8
REJECTED_ABOVE = 1.43  # of a normal of variance 1.25: one in ten


def generations(
    random: np.random.Generator, documents: int, *, longer: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(segments,) document, tokens, whether it was cut and whether it is rejected, of one generation a segment."""
    segments = random.integers(1, 9, documents)
    document = np.repeat(np.arange(documents), segments)
    of_document = random.normal(0, 0.5, documents)[document]
    wanted = longer * np.exp(random.normal(6.0, 0.6, len(document)) + of_document)
    rejected = random.normal(0, 1, len(document)) + random.normal(0, 0.5, documents)[document] > REJECTED_ABOVE
    return document, np.minimum(wanted, CAP_TOKENS), wanted > CAP_TOKENS, rejected


def pilot_of(random: np.random.Generator, segments: int) -> MeasuredTier:
    """Segments drawn evenly from all of a corpus: most of another document each."""
    document, tokens, cut, rejected = generations(random, 40 * segments)
    chosen = random.choice(len(document), segments, replace=False)
    nothing = (0,) * segments
    return MeasuredTier(
        thought_tokens=tuple(np.round(tokens[chosen]).astype(int).tolist()),
        prompt_tokens=nothing,
        generations=(1,) * segments,
        accepted=tuple((~rejected[chosen]).astype(int).tolist()),
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
        document, tokens, cut, rejected = generations(random, RUN_DOCUMENTS, longer=longer)
        one = np.ones(len(document))
        whole[tier] = Totals.by_document(document, one, tokens, cut.astype(float), one, rejected.astype(float))
    for until in range(LOOK_DOCUMENTS, RUN_DOCUMENTS + 1, LOOK_DOCUMENTS):
        seen = {
            tier: Totals(
                *(column[:until] for column in (totals.generations, totals.tokens, totals.cut)),
                *(column[:until:JUDGED_EVERY] for column in (totals.judged, totals.rejected) if column is not None),
            )
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
