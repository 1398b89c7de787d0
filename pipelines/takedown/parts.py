"""What the parts of score, augment and select hold of the documents that go: what they add to the counts; new parts.

Parts of one number say everything of the documents whose ids hash to it, so only those numbers are opened.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from augment.selection.account import outcome_counts, split_account
from difficulty.surprisal import measure_of
from pipelines.counts import contaminated_counts, document_counts, quarantine_counts, request_counts
from pipelines.joints import contaminated_urls
from pipelines.takedown.shards import add_item
from pipelines.takedown.staging import Staging
from pipelines.tombstones import removed_counts
from sharding import hashing, storage
from sharding.beam.part_join import JoinedDocument, Parts, groups_of, joined_documents, scored_documents
from sharding.beam.part_names import part_count, part_of
from sharding.packing.laying_out import DocumentLayout
from sharding.records.base import Record
from sharding.records.families import (
    CONTAMINATED,
    FAMILIES,
    KEPT,
    NEAR_COPIES,
    QUARANTINE,
    REJECTED,
    REQUESTS,
    SEGMENTS,
)
from sharding.records.types import Quarantined, Request, segment_id
from sharding.storage import manifest
from sharding.storage.manifest import Manifest


@dataclass
class Gone:
    """What goes with the documents.

    Attributes:
        found: the ids that were scored, and those that are in quarantine alone.
        counts: stage → what they had added to its counts.
        account: rows of the account of selection that they had added.
        request_keys: of their requests.
        items: what packing had made of them in the first epoch: see `shards.rebuild_shards`.
    """

    found: set[str] = field(default_factory=set)
    quarantined: set[str] = field(default_factory=set)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    account: list[dict[str, Any]] = field(default_factory=list)
    request_keys: set[str] = field(default_factory=set)
    items: Counter[str] = field(default_factory=Counter)


_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')

_BESIDE = {"score": (NEAR_COPIES,), "augment": (REQUESTS,), "select": (KEPT, REJECTED, CONTAMINATED)}


def look(output: str, stages: Mapping[str, Manifest], ids: frozenset[str], layout: DocumentLayout | None) -> Gone:
    """Find the documents, and what each had added to the counts of every stage.

    Args:
        stages: the manifests that there are, of score at least.
        layout: how documents were laid out; None where nothing was packed.
    """
    gone = Gone()
    scored = stages["score"]
    segments = Parts.of(output, scored, SEGMENTS)
    beside = [
        Parts.of(output, stages[stage], family)
        for stage, families in _BESIDE.items()
        if stage in stages
        for family in families
    ]
    removes_contaminated = "select" in stages and contaminated_urls(output, stages["select"]) != ()
    numbers = {hashing.partition_of(doc_id, part_count(segments.urls)) for doc_id in ids}
    difficulty = scored.config["difficulty"]
    threshold, measure = float(difficulty["threshold_nats"]), measure_of(difficulty)
    outcomes: Counter[str] = Counter()
    for group in groups_of(segments, *beside):
        if part_of(group.scored.urls[0])[0] not in numbers:
            continue
        for document in joined_documents(group):
            if document.scored.doc_id not in ids:
                continue
            gone.found.add(document.scored.doc_id)
            gone.counts["score"].update(document_counts(document.scored, threshold, measure))
            gone.counts["score"].subtract(removed_counts(document.scored.source))
            for request in document.beside.get(REQUESTS.name, ()):
                gone.request_keys.add(request.request_key)
                gone.counts["augment"].update(request_counts(request))
            outcomes.update(_outcomes(document))
            for overlap in document.beside.get(CONTAMINATED.name, ()):
                gone.counts["select"].update(contaminated_counts(overlap))
            if layout is not None:
                _lay_out(document, layout, gone, removes_contaminated=removes_contaminated)
    counted, gone.account = split_account(outcomes)
    gone.counts["select"].update(counted)
    gone.counts["select"]["requested"] += counted.get("candidates", 0)
    return gone


def _outcomes(document: JoinedDocument) -> Counter[str]:
    candidates = [c for family in (KEPT, REJECTED) for c in document.beside.get(family.name, ())]
    counts: Counter[str] = Counter()
    for _, of_segment in groupby(sorted(candidates, key=lambda c: c.segment_index), key=lambda c: c.segment_index):
        counts.update(outcome_counts(list(of_segment)))
    return counts


def _lay_out(document: JoinedDocument, layout: DocumentLayout, gone: Gone, *, removes_contaminated: bool) -> None:
    beside = {
        KEPT.name: document.beside.get(KEPT.name, []),
        REJECTED.name: document.beside.get(REJECTED.name, []),  # of which later epochs show some
        NEAR_COPIES.name: document.beside.get(NEAR_COPIES.name, []),
        CONTAMINATED.name: document.beside.get(CONTAMINATED.name, []) if removes_contaminated else [],
    }
    for item in layout.items(JoinedDocument(document.scored, beside), gone.counts["pack"]):
        if not item.epoch:
            add_item(gone.items, item)


def other_askers(requests: Iterable[str], ids: frozenset[str], keys: set[str]) -> dict[str, str]:
    """Request key → the first segment of another document that asks for the same, where one does.

    Args:
        requests: URLs of the parts of requests, of all that share the ledger.
        ids: the documents that go.
        keys: of their requests.
    """
    first: dict[str, tuple[str, int]] = {}
    for url in requests if keys else ():
        for request in storage.read_records(url, Request, ("doc_id", "segment_index", "request_key")):
            if request.request_key in keys and request.doc_id not in ids:
                asker = (request.doc_id, request.segment_index)
                first[request.request_key] = min(first.get(request.request_key, asker), asker)
    return {key: segment_id(*asker) for key, asker in first.items()}


def rebuild(output: str, made: Manifest, gone: Gone, ids: frozenset[str], staging: Staging) -> Manifest:
    """The manifest of a stage before pack without the documents, its new parts prepared.

    Its counts, beside those of quarantine, are left as they are.
    """
    files = {}
    for family in made.files:
        entries = []
        for entry in made.files[family]:
            url = storage.join(manifest.files_url(output, made), entry.name)
            if family == QUARANTINE.name:
                new = _without_refused(url, made.stage, gone, ids)
            elif {hashing.partition_of(i, part_of(url)[1]) for i in gone.found}.isdisjoint({part_of(url)[0]}):
                new = None
            else:
                new = _without_documents(url, family, ids)
            if new is None:
                entries.append(entry)
                continue
            schema = FAMILIES[family].schema(vocab_size=_vocab_size(made, staging))
            entries += staging.write(made.stage, entry.name, new, schema)
        if entries:
            files[family] = entries
    return staging.with_files(made, files)


def _vocab_size(made: Manifest, staging: Staging) -> int:
    return int(made.facts.get("vocab_size", staging.vocab_size))


def _without_documents(url: str, family: str, ids: frozenset[str]) -> list[Record] | None:
    """The records of a part that stay; None where all do."""
    if family == SEGMENTS.name:
        stay: list[Any] = []
        all_stay = True
        for document in scored_documents(url):
            if document.doc_id in ids:
                all_stay = False
            else:
                stay += document.segments()
        return None if all_stay else stay
    return _staying(storage.read_records(url, FAMILIES[family].kind), lambda record: record.doc_id not in ids)


def _without_refused(url: str, stage: str, gone: Gone, ids: frozenset[str]) -> list[Record] | None:
    """The same of a part of quarantine, whose records are counted where they go."""

    def stays(record: Quarantined) -> bool:
        named = {*named_in(record.excerpt), record.doc_id or ""} & ids
        if not named:
            return True
        if stage == "score":
            gone.quarantined |= named
            gone.counts["score"].update(quarantine_counts(record))
            gone.counts["score"].subtract(removed_counts(""))
        return False

    return _staying(storage.read_records(url, Quarantined), stays)


def named_in(excerpt: str) -> set[str]:
    """The strings of JSON in the beginning of a record that could not be read further: its id may be among them."""
    return set(_STRING.findall(excerpt))


def _staying(records: Iterable[Any], stays: Callable[[Any], bool]) -> list[Record] | None:
    all_records = list(records)
    stay = [record for record in all_records if stays(record)]
    return None if len(stay) == len(all_records) else stay
