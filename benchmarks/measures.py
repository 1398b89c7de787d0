"""What each measure of difficulty makes of text, code and of blobs that no thought can help with.

    python -m benchmarks.measures [REFERENCE_MODEL]

Three texts of each kind, under SmolLM2-135M-Instruct: pages of Python's language reference, modules of its library, the
licence of this project; random bytes as base64 and as a table in hexadecimal, and a table of random numbers. A second
model's name gives the column of excess.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import hashlib
import heapq
import inspect
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import cast

import numpy as np

from difficulty import DifficultyConfig, align_nats
from difficulty.scorers import make_scorer
from difficulty.surprisal import Measure, token_difficulty_nats

MODEL = "smollm2-135m-instruct"
THRESHOLD_NATS = 2.0
NOTHING = np.empty(0, np.float32)


def random_bytes(size: int, name: str) -> bytes:
    """Bytes that follow from a name."""
    return b"".join(hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(size // 32 + 1))[:size]


def kinds() -> dict[str, list[str]]:
    """Name of each kind → its texts."""
    licence = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    return {
        "reference": [topics[name][:1000] for name in ("strings", "formatstrings", "specialnames")],
        "code": [inspect.getsource(module)[2000:3000] for module in (argparse, difflib, heapq)],
        "licence": [licence[start : start + 1000] for start in (0, 2000, 4000)],
        "base64": [base64.encodebytes(random_bytes(740, str(text))).decode() for text in range(3)],
        "hex": [
            "\n".join(f"{line:04x}: " + random_bytes(16, f"{text}{line}").hex(" ") for line in range(18))
            for text in range(3)
        ],
        "numbers": [
            "\n".join(
                f"{line},{int.from_bytes(random_bytes(4, f'{text}n{line}')) / 1e5:.3f},"
                f"{random_bytes(1, f'{text}m{line}')[0]}"
                for line in range(50)
            )
            for text in range(3)
        ],
    }


def main(reference: str | None = None) -> None:
    """Print a table: for each kind and measure the share of hard tokens, and the mass of 100 tokens."""
    texts = [text for of_kind in kinds().values() for text in of_kind]
    scores = make_scorer(DifficultyConfig(model=MODEL)).score(texts)
    known = make_scorer(DifficultyConfig(model=reference)).score(texts) if reference else None
    print("kind       nats  entropy  measure         hard  nats above 2 in 100 tokens")
    at = 0
    for kind, of_kind in kinds().items():
        here = range(at, at + len(of_kind))
        at += len(of_kind)
        surprisal = np.concatenate([scores[i].surprisal_nats for i in here])
        entropy = np.concatenate([scores[i].entropy_nats for i in here])
        columns = {"surprisal": surprisal, "beyond_entropy": surprisal}
        if known is not None:
            second = [align_nats(known[i].byte_ends, known[i].surprisal_nats, scores[i].byte_ends) for i in here]
            columns["excess"] = np.maximum(surprisal - np.concatenate(second), 0)
        for measure, nats in columns.items():
            hard = token_difficulty_nats(nats, entropy, NOTHING, cast(Measure, measure))
            mass = 100 * np.maximum(hard - THRESHOLD_NATS, 0).mean()
            share = (hard > THRESHOLD_NATS).mean()
            print(f"{kind:9} {surprisal.mean():5.2f} {entropy.mean():8.2f}  {measure:14} {share:5.0%} {mass:6.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
