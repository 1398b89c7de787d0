"""Judging a document: its candidates meet the gates, and each segment the text that its traces are tried on. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from augment.selection.benchmarks.index import BenchmarkIndex, load_index
from augment.selection.candidates import JudgedSegment, trace_of
from augment.selection.config import SelectConfig
from augment.selection.gates.gate import Gate, Subject
from sharding.models.tokenizer import TextTokenizer
from sharding.records.types import Candidate, ContaminatedDocument, ScoredSegment

CONTAMINATED = "contaminated"
"""The reason of a trace that overlaps with a benchmark."""


def judge(
    candidate: Candidate, source_text: str, gates: Mapping[str, Gate], benchmarks: Sequence[str], *, remove: bool
) -> Candidate:
    """The candidate with the gates' reasons against it, in the order of the gates.

    Args:
        source_text: the segment, as much of it as the generator was shown.
        gates: by name, from `GatesConfig.enabled`.
        benchmarks: those that the trace overlaps with.
        remove: whether that is a reason against it.
    """
    subject = Subject(trace=trace_of(candidate), source_text=source_text, prompt=candidate.prompt)
    reasons = [name for name, gate in gates.items() if gate.objects(subject)] + candidate.reasons
    if benchmarks and remove:
        reasons.append(CONTAMINATED)
    return msgspec.structs.replace(candidate, reasons=reasons, contaminated=list(benchmarks))


class DocumentJudge:
    """Judges all candidates of one document after the other.

    Args:
        config: the `select` section.
        tokenizer: the training tokenizer.
        valued_tiers: tiers whose candidates are to be valued.

    Raises:
        RequestError: a benchmark can't be read.
    """

    def __init__(self, config: SelectConfig, tokenizer: TextTokenizer, valued_tiers: frozenset[str]) -> None:
        self._config, self._tokenizer, self._valued_tiers = config, tokenizer, valued_tiers
        self._gates = config.gates.enabled()
        self._index: BenchmarkIndex | None = None
        self._remove = False
        if config.decontaminate is not None:
            self._index = load_index(config.decontaminate)
            self._remove = config.decontaminate.action == "remove"

    def judge(
        self, segments: Sequence[ScoredSegment], candidates: Sequence[Candidate]
    ) -> Iterator[JudgedSegment | ContaminatedDocument]:
        """The document's segments that have candidates, each judged; and the document itself, if it is contaminated.

        Args:
            segments: all segments of the document; ids are enough.
            candidates: all candidates of the document.
        """
        ordered = sorted(segments, key=lambda segment: segment.segment_index)
        ids = np.concatenate([segment.input_ids for segment in ordered])
        starts = np.cumsum([0, *(len(segment.input_ids) for segment in ordered)])
        if self._index is not None:
            benchmarks = self._index.hits(self._tokenizer.decode(ids))
            if benchmarks:
                yield ContaminatedDocument(doc_id=ordered[0].doc_id, benchmarks=benchmarks, source_tokens=len(ids))
        by_segment: dict[int, list[Candidate]] = {}
        for candidate in sorted(candidates, key=lambda c: (c.segment_index, c.sample, c.key)):
            by_segment.setdefault(candidate.segment_index, []).append(candidate)
        for index, of_segment in by_segment.items():
            start = int(starts[index])
            yield self._segment(ids, start, start + of_segment[0].shown_tokens, of_segment)

    def _segment(self, ids: np.ndarray, start: int, end: int, candidates: Sequence[Candidate]) -> JudgedSegment:
        """One segment, whose generator was shown the document's tokens [start, end)."""
        source_text = self._tokenizer.decode(ids[start:end])
        tier = candidates[0].tier
        valued = tier in self._valued_tiers
        after = self._tokenizer.decode_bytes(ids[end : end + self._config.gain.continuation_tokens]) if valued else b""
        judged = [
            judge(
                candidate,
                source_text,
                self._gates,
                self._index.hits(candidate.text) if self._index is not None else (),
                remove=self._remove,
            )
            for candidate in candidates
        ]
        return JudgedSegment(
            doc_id=candidates[0].doc_id,
            segment_index=candidates[0].segment_index,
            tier=tier,
            valued=valued,
            source_text=source_text,
            # The cut may tear its last character.
            continuation=after.decode(errors="ignore"),
            candidates=judged,
        )
