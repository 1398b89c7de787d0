"""Deep: whether every thought in the shards is a kept candidate's, and in none more often than its document is.

One kept part at a time. Nearly every thought is told by its digest; only where some don't match are the candidates of
that document looked at token by token: a thought may have lost its end to the length of a sequence, and without
delimiters several stand together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.verify.digests import document_keys, places_within, prefix_sums, stretch_digests, token_hashes
from pipelines.verify.report import Problem, at
from pipelines.verify.sources import doc_id_at
from sharding.records.types import Candidate
from sharding.storage.arrow_files import read_records

COLUMNS = ("doc_id", "segment_index", "sample", "key", "input_ids")

_THOUGHT = np.dtype([("key", "u8"), ("check", "u4"), ("tokens", "u4"), ("digest", "u8")])
_BATCH = 4096


@dataclass
class Compared:
    """What comparing a part found: what is wrong, and how many thoughts were compared."""

    problems: list[Problem] = field(default_factory=list)
    thoughts: int = 0


def compare_part(
    part_url: str | None, runs: np.ndarray, copies: np.ndarray, urls: dict[int, str], *, cut_allowed: bool
) -> Compared:
    """Compare the thoughts that shards hold with the kept candidates of one part.

    Args:
        part_url: the kept part; None when the documents of this part have none kept.
        runs: `RUN` records of the documents of this part.
        copies: `COPIES` records of the documents of this part.
        urls: the shards by the number that runs name them by.
        cut_allowed: whether thoughts may have lost their end.
    """
    found = Compared(thoughts=len(runs))
    if not len(runs):
        return found
    kept = _kept_table(part_url)
    plain = np.empty(len(runs), _THOUGHT)
    for name in _THOUGHT.names or ():
        plain[name] = runs[name]
    thoughts, used = np.unique(plain, return_counts=True)
    candidates, number = np.unique(kept, return_counts=True)
    at_most = np.zeros(len(thoughts), np.int64)
    _, ours, theirs = np.intersect1d(thoughts, candidates, return_indices=True)
    at_most[ours] = number[theirs] * _copies_of(thoughts[ours], copies)
    doubtful = used > at_most
    if not doubtful.any():
        return found
    documents = {(int(t["key"]), int(t["check"])) for t in thoughts[doubtful]}
    of_document: dict[tuple[int, int], list[Candidate]] = {document: [] for document in documents}
    for document, candidate in _candidates(part_url):
        if document in of_document:
            of_document[document].append(candidate)
    members: dict[tuple[int, int], list[np.void]] = {document: [] for document in documents}
    for run in runs:
        if (document := (int(run["key"]), int(run["check"]))) in members:
            members[document].append(run)
    for document, candidates_here in of_document.items():
        times = int(_copies_of(np.array([(*document, 0, 0)], _THOUGHT), copies)[0])
        found.problems += _explain(members[document], candidates_here, times, urls, cut_allowed=cut_allowed)
    return found


def _explain(
    runs: Sequence[np.void], candidates: Sequence[Candidate], copies: int, urls: dict[int, str], *, cut_allowed: bool
) -> Iterator[Problem]:
    """The runs of one document that are not the thoughts kept for it, each at most `copies` times."""
    ordered = sorted(candidates, key=lambda c: (c.segment_index, c.sample, c.key))
    thoughts = [candidate.input_ids for candidate in ordered if len(candidate.input_ids)]
    used: Counter[int] = Counter()
    for run in sorted(runs, key=lambda run: -int(run["tokens"])):
        matches = list(_matches(int(run["tokens"]), int(run["digest"]), thoughts, cut_allowed=cut_allowed))
        free = next((match for match in matches if all(used[thought] < copies for thought in match)), None)
        used.update(free or ())
        if free is None:
            url, row = urls[int(run["file"])], int(run["row"])
            what = (
                f"a thought of {run['tokens']} tokens is there more than the {copies} times that its document is"
                if matches
                else f"a thought of {run['tokens']} tokens is not one of the {len(thoughts)} kept for its document"
            )
            yield Problem(at(url, row, doc_id_at(url, row, int(run["key"]))), what)


def _matches(tokens: int, digest: int, thoughts: Sequence[np.ndarray], *, cut_allowed: bool) -> Iterator[range]:
    """Ranges of consecutive thoughts that a run of so many tokens may be; whole ones first."""
    whole: list[range] = []
    cut: list[range] = []
    for first in range(len(thoughts)):
        length = 0
        for last in range(first, len(thoughts)):
            length += len(thoughts[last])
            if length >= tokens:
                together = np.concatenate(thoughts[first : last + 1])
                lengths = np.array([tokens])
                sums = prefix_sums(token_hashes(places_within(lengths), together[:tokens]))
                if int(sums[-1]) == digest:
                    (whole if length == tokens else cut).append(range(first, last + 1))
                break
    yield from whole
    if cut_allowed:
        yield from cut


def _kept_table(part_url: str | None) -> np.ndarray:
    """(num_thoughts,) what tells each candidate of a kept part."""
    tables = [np.empty(0, _THOUGHT)]
    pending: list[Candidate] = []
    records = read_records(part_url, Candidate, COLUMNS) if part_url else iter(())
    for candidate in records:
        pending.append(candidate)
        if len(pending) == _BATCH:
            tables.append(_table(pending))
            pending = []
    if pending:
        tables.append(_table(pending))
    return np.concatenate(tables)


def _table(candidates: Sequence[Candidate]) -> np.ndarray:
    made = np.empty(len(candidates), _THOUGHT)
    made["key"], made["check"] = document_keys([candidate.doc_id for candidate in candidates])
    lengths = np.array([len(candidate.input_ids) for candidate in candidates])
    made["tokens"] = lengths
    made["digest"] = stretch_digests(np.concatenate([c.input_ids for c in candidates]), lengths)
    return made


def _candidates(part_url: str | None) -> Iterator[tuple[tuple[int, int], Candidate]]:
    for candidate in read_records(part_url, Candidate, COLUMNS) if part_url else iter(()):
        keys, checks = document_keys([candidate.doc_id])
        yield (int(keys[0]), int(checks[0])), candidate


def _copies_of(thoughts: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """(num_thoughts,) how often each one's document is in the shards, 1 where nothing else was noted."""
    times = np.ones(len(thoughts), np.int64)
    if len(copies):
        copies = copies[np.argsort(copies["key"])]
        entries = copies[np.searchsorted(copies["key"], thoughts["key"]).clip(max=len(copies) - 1)]
        same = (entries["key"] == thoughts["key"]) & (entries["check"] == thoughts["check"])
        times[same] = entries["copies"][same]
    return times
