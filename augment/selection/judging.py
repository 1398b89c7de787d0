"""Judging: a segment gets the text that its traces are tried on, and each of its candidates meets the gates. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec
import numpy as np

from augment.selection.benchmarks.index import BenchmarkIndex, load_index
from augment.selection.candidates import AskedSegment, JudgedSegment, StepText, trace_of
from augment.selection.config import SelectConfig
from augment.selection.gates.gate import Gate, Subject, source_words
from augment.selection.gates.leaked_sentences import without_leaked_opening
from sharding.hashing import fingerprint
from sharding.models.tokenizer import TextTokenizer
from sharding.records.types import Candidate, ContaminatedDocument, Request

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


def document_hash(input_ids: np.ndarray) -> str:
    """What tells a document from others, but not from its copies; of its (num_tokens,) token ids."""
    return fingerprint([input_ids.tobytes()], 8)


class Judge:
    """Judges the candidates of segments: reads in their document what there is to judge by, then each trace.

    Args:
        config: the `select` section.
        tokenizer: the training tokenizer.
        valued_tiers: tiers whose candidates are to be valued.

    Raises:
        RequestError: a benchmark can't be read.
    """

    def __init__(self, config: SelectConfig, tokenizer: TextTokenizer, valued_tiers: Container[str]) -> None:
        self._config, self._tokenizer, self._valued_tiers = config, tokenizer, valued_tiers
        self._gates = config.gates.enabled()
        self._index: BenchmarkIndex | None = None
        self._remove = False
        if config.decontaminate is not None:
            self._index = load_index(config.decontaminate)
            self._remove = config.decontaminate.action == "remove"

    def contaminated(self, doc_id: str, input_ids: np.ndarray) -> ContaminatedDocument | None:
        """The document with the benchmarks that it overlaps with; None where it doesn't."""
        if self._index is None or not (benchmarks := self._index.hits(self._tokenizer.decode(input_ids))):
            return None
        return ContaminatedDocument(doc_id=doc_id, benchmarks=benchmarks, source_tokens=len(input_ids))

    def ask(self, request: Request, document: str, input_ids: np.ndarray, segment_start: int) -> AskedSegment:
        """A request with the text that its traces are judged by.

        Args:
            request: of a segment of the document.
            document: from `document_hash`.
            input_ids: (num_tokens,) of the whole document.
            segment_start: where the segment begins in it.
        """
        end = segment_start + request.shown_tokens
        valued = request.tier in self._valued_tiers
        after = input_ids[end : end + self._config.gain.continuation_tokens] if valued else input_ids[:0]
        return AskedSegment(
            request=request,
            document=document,
            valued=valued,
            source_text=self._tokenizer.decode(input_ids[segment_start:end]),
            # The cut may tear its last character.
            continuation=self._tokenizer.decode_bytes(after).decode(errors="ignore"),
        )

    def _without_opening(self, candidate: Candidate, source_line: str) -> Candidate:
        """The candidate without what it says of the prompt before it begins to think."""
        text = without_leaked_opening(candidate.text, source_line)
        if text == candidate.text or candidate.reasons:
            return candidate
        return msgspec.structs.replace(candidate, text=text, input_ids=self._tokenizer.encode(text))

    def judge(
        self, asked: AskedSegment, candidates: Sequence[Candidate], steps: Sequence[StepText] = ()
    ) -> JudgedSegment:
        """The segment with its candidates, each with what the gates have against it.

        Args:
            steps: the calls that a recipe has made for them.
        """
        source_line = source_words(asked.source_text).line if candidates else ""
        judged = [
            judge(
                self._without_opening(candidate, source_line),
                asked.source_text,
                self._gates,
                self._index.hits(candidate.text) if self._index is not None else (),
                remove=self._remove,
            )
            for candidate in candidates
        ]
        return JudgedSegment(
            doc_id=asked.request.doc_id,
            segment_index=asked.request.segment_index,
            document=asked.document,
            tier=asked.request.tier,
            trace_tokens=asked.request.max_tokens,
            valued=asked.valued,
            source_text=asked.source_text,
            continuation=asked.continuation,
            candidates=judged,
            steps=list(steps),
        )
