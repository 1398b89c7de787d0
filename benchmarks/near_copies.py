"""Near-copies: what is found of those that exact Jaccard indices name, on a made corpus, and what it costs.

    python -m benchmarks.near_copies --megabytes 20

Documents are drawn from a vocabulary in which words are as frequent as in a language (Zipf). Some are copies of others
with a number of their words replaced, so that pairs of every resemblance are there. Truth are the pairs of documents
whose sets of runs of five words have a Jaccard index of at least the similarity; found are the pairs that are linked,
and the pairs that clusters join. Then the score stage, which only tokenizes, runs over another such corpus twice,
without looking for near-copies and with. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from augment.selection.words import words_of
from benchmarks.machine import conclude
from benchmarks.milling_ours import NOTHING_THINKS
from pipelines.run import mill
from pipelines.tools.conformance import train_tokenizer
from pipelines.yaml_config import from_mapping
from sharding.minhash import RUN_WORDS
from sharding.records.types import Document
from sharding.sources import NearCopies, NearCopiesConfig, near_copies

console = Console()

RANKS = {"": 0}
SIMILARITIES = (0.6, 0.8, 0.9)
WORDS = 300
VOCABULARY = 20_000
CHANGES = (0, 1, 2, 3, 5, 8, 12, 18, 26, 40)
"""Words replaced in a copy."""


def corpus(documents: int, seed: int = 0) -> Iterator[str]:
    """Texts of which a third are changed copies of others."""
    drawn = random.Random(seed)
    names = [f"{'bcdfghklmnprstvz'[i % 16]}{'aeiou'[i % 5]}{i:x}" for i in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(VOCABULARY)))
    originals: list[list[str]] = []
    for number in range(documents):
        if number % 3 == 2:
            words = list(drawn.choice(originals[-2000:]))
            for place in drawn.sample(range(len(words)), drawn.choice(CHANGES)):
                words[place] = f"new{drawn.randrange(10**6)}"
        else:
            words = drawn.choices(names, cum_weights=weights, k=drawn.randint(WORDS // 2, 2 * WORDS))
            originals.append(words)
        yield " ".join(words)


def true_pairs(texts: Sequence[str], least: float) -> dict[tuple[int, int], float]:
    """Pairs of documents that share a run → the Jaccard index of their runs, of at least so much."""
    runs = [
        {tuple(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)} for words in map(words_of, texts)
    ]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, each in enumerate(runs):
        for run in each:
            holders[run].append(number)
    meeting = {pair for numbers in holders.values() for pair in itertools.combinations(numbers, 2)}
    found = {(a, b): len(runs[a] & runs[b]) / len(runs[a] | runs[b]) for a, b in meeting}
    return {pair: jaccard for pair, jaccard in found.items() if jaccard >= least}


def clusters(texts: Sequence[str], similarity: float) -> list[list[int]]:
    """The clusters that are found, as numbers of documents."""
    near = NearCopies(NearCopiesConfig(action="mark", similarity=similarity), words_of)
    met: dict[str, list[bytes]] = defaultdict(list)
    for number, text in enumerate(texts):
        document = Document(doc_id=f"{number:08d}", text=text, origin=str(number))
        for band, member in near_copies.banded(document, RANKS, near):
            met[band].append(member)
    links = [link for group in met.items() for link in near_copies.linked(group, similarity)]
    for _ in range(near_copies.ROUNDS):
        links = _grouped([way for link in links for way in near_copies.both_ways(link)], near_copies.large_star)
        links = _grouped(links, near_copies.small_star)
    of: dict[str, list[int]] = defaultdict(list)
    for found in _grouped([way for link in links for way in near_copies.both_ways(link)], near_copies.settled):
        if not isinstance(found, dict):
            of[near_copies.decode_mark(found[1][1:]).cluster].append(int(found[0]))
    return list(of.values())


def _grouped(links: Iterable[tuple[str, bytes]], step: Callable[[tuple[str, list[bytes]]], Iterator[Any]]) -> list[Any]:
    groups: dict[str, list[bytes]] = defaultdict(list)
    for key, value in links:
        groups[key].append(value)
    return [found for group in groups.items() for found in step(group)]


def quality(texts: Sequence[str], figures: dict[str, float]) -> None:
    """Precision and recall of pairs in one cluster; and without what lies within 0.05 of the similarity."""
    table = Table("similarity", "pairs", "found", "precision", "recall", "0.05 off: precision", "recall")
    truth = true_pairs(texts, 0.3)
    for similarity in SIMILARITIES:
        wanted, nearly, clear = (
            {pair for pair, jaccard in truth.items() if jaccard >= similarity + more} for more in (0, -0.05, 0.05)
        )
        found = {pair for each in clusters(texts, similarity) for pair in itertools.combinations(sorted(each), 2)}
        numbers = {
            "precision": len(found & wanted) / len(found),
            "recall": len(found & wanted) / len(wanted),
            "loose_precision": len(found & nearly) / len(found),
            "clear_recall": len(found & clear) / len(clear),
        }
        shown = (f"{number:.3f}" for number in numbers.values())
        table.add_row(f"{similarity}", f"{len(wanted):,}", f"{len(found):,}", *shown)
        figures |= {f"{name}_{similarity}": number for name, number in numbers.items()}
    console.print(table)


def cost(megabytes: float, figures: dict[str, float]) -> None:
    """Seconds of the score stage without and with looking for near-copies."""
    table = Table("near_copies.action", "seconds", "of the processor", "MB a processor second", "documents")
    with tempfile.TemporaryDirectory() as folder:
        source, size = Path(folder) / "in.jsonl", 0
        with source.open("w", encoding="utf-8") as file:
            for text in corpus(10**9, seed=1):
                size += file.write(json.dumps({"text": text}) + "\n")
                if size > megabytes * 1e6:
                    break
        train_tokenizer(Path(folder) / "tokenizer")
        for action in ("keep", "mark", "drop"):
            tree = {
                "source": {"path": str(source)},
                "output": f"{folder}/{action}",
                "duplicates": "drop",
                "near_copies": {"action": action},
                "tokenizer": f"{folder}/tokenizer",
                "difficulty": {"scorer": "none"},
                "budget": NOTHING_THINKS,
                "pack": {"sequence_length": 2048, "num_shards": 4},
            }
            began, busy = time.monotonic(), time.process_time()
            made = mill(from_mapping(tree), stages=["score"])["score"]
            seconds, busy = time.monotonic() - began, time.process_time() - busy
            table.add_row(
                action, f"{seconds:.1f}", f"{busy:.1f}", f"{size / 1e6 / busy:.2f}", f"{made.counts['documents']:,}"
            )
            figures |= {f"seconds_{action}": seconds, f"processor_seconds_{action}": busy}
            figures |= {name: n for name, n in made.counts.items() if action == "drop" and "near" in name}
    figures["megabytes"] = size / 1e6
    console.print(table)


def main() -> None:
    """Make the corpora, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=3000, help="of the corpus whose truth is worked out")
    parser.add_argument("--megabytes", type=float, default=20, help="of the corpus that is timed")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    quality(list(corpus(options.documents)), figures)
    cost(options.megabytes, figures)
    conclude(console, "near_copies", figures, ("datasketch", "apache-beam"))


if __name__ == "__main__":
    main()
