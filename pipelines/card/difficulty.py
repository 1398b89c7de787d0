"""What the card says of difficulty: the scorer, the means, and how many segments are how hard."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.card.markdown import share
from sharding.storage.manifest import Manifest

_BAR_WIDTH = 40
_KEY_BITS = 32


def of_difficulty(scored: Manifest) -> dict[str, Any]:
    counts, histogram = scored.counts, scored.facts["histogram"]
    tokens = max(1, counts["source_tokens"])
    return {
        "scorer": scored.facts["scorer"],
        "mean_surprisal_nats": counts.get("surprisal_micronats", 0) / 1e6 / tokens,
        "mean_entropy_nats": counts.get("entropy_micronats", 0) / 1e6 / tokens,
        "hard_share": share(counts.get("hard_tokens", 0), counts["source_tokens"]),
        "threshold_nats": scored.config["difficulty"]["threshold_nats"],
        "has_memory": bool(scored.facts.get("memory")),
        "quantiles": {
            f"{float(rank):.0%}": f"{nats:,.1f}" for rank, nats in histogram.get("quantiles_nats", {}).items()
        },
        "doublings": list(_doublings(histogram["by_difficulty"])),
    }


def _doublings(bins: Mapping[str, Any]) -> Iterator[tuple[int, int, str, int]]:
    """(from, to, bar, segments) of each doubling of the difficulty in nats."""
    counts = Counter[int]()
    key = 0
    for step, count in zip(bins["bin_steps"], bins["counts"], strict=True):
        key += step
        # A key is the upper half of a float64: its exponent is the power of two below the difficulty.
        (nats,) = struct.unpack("<d", struct.pack("<q", key << int(bins["shift"]) << _KEY_BITS))
        counts[int(nats).bit_length()] += count
    for power in range(min(counts, default=0), max(counts, default=-1) + 1):
        low, high = (0, 1) if power == 0 else (1 << power - 1, 1 << power)
        yield low, high, "█" * round(_BAR_WIDTH * counts[power] / max(counts.values())), counts[power]
