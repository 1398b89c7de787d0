"""What the gates reject while a run generates: asked of a sample of its documents, as the select stage will ask.

    scored parts ─► some documents by hash ─┐
    rows of the ledger, as they come ───────┴► the gates of `select` ─► rejected or not

Gates look at a trace and at what its generator was shown of the segment, so a request need not be made again. What
needs a scorer, such as the gain, is told when selection has asked it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from augment.selection.candidates import ROW_COLUMNS, make_candidates
from augment.selection.judging import Judge
from pipelines.config import MillConfig
from pipelines.joints import holdback_of
from sharding.beam.part_join import scored_documents
from sharding.hashing import content_id
from sharding.models.tokenizer import load_tokenizer
from sharding.records.arrow import from_batch
from sharding.records.types import LedgerRow, Request, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

SAMPLE_DOCUMENTS = 512
"""So many documents are looked at; parts are filled by hash, so those of a few parts are as good as any."""

SAMPLE_TOKENS = 2_000_000
"""The sample ends here as well: some 20 MB."""

_OF_HARD_SPANS = ("surprisal_nats", "entropy_nats", "memory_nats")


class SampledGates:
    """Asks the gates about traces of a sample of documents.

    Args:
        config: the run.
        scored: the manifest of its scores.
    """

    columns: Sequence[str] = (*ROW_COLUMNS, "segment_id", "tier")
    """Of the ledger."""

    def __init__(self, config: MillConfig, scored: Manifest) -> None:
        self._config, self._scored = config, scored
        self._holdback = holdback_of(config)
        self._prompts = {tier.name: tier.prompt for tier in config.budget.tiers if not tier.skips}
        self._tokenizer = load_tokenizer(config.tokenizer)
        self._judge: Judge | None = None
        self._segments: dict[str, tuple[ScoredSegment, np.ndarray]] = {}

    def load(self) -> None:
        """Read the sample and what gates need; takes a second or two.

        Raises:
            MillError: the scored parts can't be read.
        """
        judge = Judge(self._config.select, self._tokenizer, ())
        found: dict[str, tuple[ScoredSegment, np.ndarray]] = {}
        columns = _OF_HARD_SPANS if self._holdback.at_hard_span else ()
        urls = sorted(manifest.file_urls(self._config.output, self._scored, "segments"), key=content_id)
        documents = (document for url in urls for document in scored_documents(url, columns))
        tokens = 0
        for document in itertools.islice(documents, SAMPLE_DOCUMENTS):
            for segment in document.segments():
                found[segment.segment_id] = segment, document.input_ids
            tokens += len(document.input_ids)
            if tokens >= SAMPLE_TOKENS:
                break
        self._judge, self._segments = judge, found

    def rejected(self, batch: pa.RecordBatch) -> list[bool | None]:
        """Of each row of a part whether a gate rejects its trace; None where it isn't in the sample."""
        found: list[bool | None] = [None] * batch.num_rows
        names, tiers, steps = (batch.column(name).to_pylist() for name in ("segment_id", "tier", "step"))
        asked = [
            place
            for place, (name, tier, step) in enumerate(zip(names, tiers, steps, strict=True))
            if name in self._segments and tier in self._prompts and not step
        ]
        if asked:
            rows = from_batch(LedgerRow, batch.take(pa.array(asked)).select(self.columns))
            for place, row in zip(asked, rows, strict=True):
                found[place] = self._objects(row)
        return found

    def _objects(self, row: LedgerRow) -> bool:
        assert self._judge is not None
        segment, document = self._segments[row.segment_id]
        request = Request(
            doc_id=segment.doc_id,
            segment_index=segment.segment_index,
            tier=row.tier,
            model="",
            prompt=self._prompts[row.tier] or "",
            request_key=row.request_key,
            samples=row.sample + 1,
            max_tokens=0,
            expected_tokens=0.0,
            prompt_tokens=row.prompt_tokens,
            prompt_token_ids=np.zeros(0, np.uint32),
            shown_tokens=self._holdback.shown_tokens(segment, row.tier),
        )
        asked = self._judge.ask(request, "", document, segment.token_start)
        [candidate] = self._judge.judge(asked, make_candidates(request, [row], self._tokenizer)).candidates
        return bool(candidate.reasons)
