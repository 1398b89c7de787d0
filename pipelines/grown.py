"""The step of the score stage that finds what an earlier state of the corpus had: see `pipelines.earlier_scores`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import msgspec
import numpy as np
from apache_beam.typehints import KV

from sharding import records, storage
from sharding.beam.counts import AddUpCounts
from sharding.beam.part_join import scored_documents
from sharding.beam.shuffle import GroupBytes
from sharding.errors import MillError
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Document, ScoredDocument

logger = logging.getLogger(__name__)

_DOCUMENT, _KNOWN = b"d", b"k"


class FindKnown(beam.PTransform):
    """Documents → the same, with the nats of those that were scored before; and how many those are.

    Args:
        parts: of `EarlierScores.parts`.
        tokenizer: name of the training tokenizer.
        num_partitions: see `GroupBytes`.

    Returns:
        `documents`, and `facts`: of them, `reused` says how many documents and tokens were known. Without parts the
        documents are as they were, and there is no such fact.
    """

    def __init__(self, parts: Sequence[tuple[str, str]], tokenizer: str, num_partitions: int) -> None:
        super().__init__()
        self._parts, self._tokenizer, self._num_partitions = tuple(parts), tokenizer, num_partitions

    def expand(self, documents: beam.PCollection) -> dict[str, Any]:
        if not self._parts:
            return {"documents": documents, "facts": {}}
        kind = KV[str, bytes]
        now = documents | "By id" >> beam.Map(
            lambda document: (document.doc_id, _DOCUMENT + records.encode(document))
        ).with_output_types(kind)
        before = (
            documents.pipeline
            | "Earlier parts" >> beam.Create(self._parts)
            | "To workers" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read).with_output_types(kind)
        )
        together = (now, before) | "Group" >> GroupBytes(self._num_partitions)
        found = together | "Known" >> beam.FlatMap(with_known, self._tokenizer).with_output_types(Document)
        return {"documents": found, "facts": {"reused": (found | "Count" >> beam.Map(_counts),) | AddUpCounts()}}


def _read(part: tuple[str, str]) -> Iterator[tuple[str, bytes]]:
    """The documents of a part by id; none of one that is damaged or gone, which is logged."""
    url, sha256 = part
    try:
        is_whole = hashlib.sha256(storage.read_bytes(url)).hexdigest() == sha256
        why = "it is damaged"
    except MillError as error:
        is_whole, why = False, str(error)
    if not is_whole:
        logger.warning("%s: its documents are scored anew: %s", url, why)
        return
    for document in scored_documents(url, ("surprisal_nats", "entropy_nats")):
        yield document.doc_id, _KNOWN + records.encode(document)


def with_known(group: tuple[str, Iterable[bytes]], tokenizer: str) -> Iterator[Document]:
    """The document of an id as it is now, if there is one, with its nats where an earlier one had the same text."""
    now: Document | None = None
    before: list[bytes] = []
    for data in group[1]:
        if data[:1] == _DOCUMENT:
            now = records.decode(Document, data[1:])
        else:
            before.append(data[1:])
    if now is None:
        return
    text = now.text.encode(errors="surrogatepass")
    for data in sorted(before):  # a plan and an earlier run may both have scored it
        scored = records.decode(ScoredDocument, data)
        if load_tokenizer(tokenizer).decode_bytes(scored.input_ids) == text:
            known = np.concatenate((scored.surprisal_nats, scored.entropy_nats)).astype(np.float16)
            now = msgspec.structs.replace(now, known_nats=known)
            break
    yield now


def _counts(document: Document) -> dict[str, int]:
    if document.known_nats is None:
        return {"documents": 0, "tokens": 0}
    return {"documents": 1, "tokens": len(document.known_nats) // 2}
