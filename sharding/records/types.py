"""The record types: the contract between the stages.

A record travels between workers as compact bytes (`encode`/`decode`, registered as a Beam coder in
`sharding.beam.coders`) and rests on disk as rows of Arrow record batches (`to_batch`/`from_batch`). Per-token data is
always a numpy array, never a list of Python numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import numpy as np

from sharding.records.arrow import Column, Float16s, Int32, NotStored, NotStoredText, NotStoredTexts, TokenIds, Uint32s
from sharding.records.base import Record

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
"""Of a file, or a count in it."""


class Document(Record, frozen=True, kw_only=True, eq=False):
    """One source record.

    Attributes:
        doc_id: unique in the run: the source's id, or the content hash where there is none.
        text: the source text; valid Unicode without lone surrogates.
        origin: where it was read, as "path:line" or "path:row".
        metadata: the carried columns as a JSON object, or None.
        source: name of the source it came from, "" where a run has but one.
        cluster: what the split of a document is drawn by that has near-copies; "" where it has none, or nobody looked.
        known_nats: (2, num_tokens) float16 row by row, surprisal and entropy of its training tokens where an earlier
            run has scored the same text; None where it is new.
    """

    doc_id: str
    text: str
    origin: str
    metadata: str | None = None
    source: str = ""
    cluster: str = ""
    known_nats: np.ndarray | None = None


class Quarantined(Record, frozen=True, kw_only=True, eq=False):
    """A record that could not go on, with the reason. Documents in = documents out + quarantined.

    Attributes:
        stage: the stage that refused it.
        origin: "path:line" of a source record, or the key of a generation request.
        doc_id: the document's id where one is known.
        reason: a short stable name, such as "invalid_utf8".
        detail: the error in words.
        excerpt: the first bytes of the payload as text, undecodable bytes escaped.
    """

    stage: str
    origin: str
    reason: str
    detail: str
    doc_id: str | None = None
    excerpt: str = ""


class ScoredSegment(Record, frozen=True, kw_only=True, eq=False):
    """A span of a document with the difficulty of each of its training tokens.

    The segments of a document, in order, hold exactly the training tokens of its text; a segment starts and ends at a
    character boundary, so its tokens decode to valid text.

    Attributes:
        segment_index: position within the document, from 0.
        num_segments: how many segments the document has.
        token_start: index within the document of the segment's first token.
        input_ids: (num_tokens,) uint16 or uint32, training token ids.
        surprisal_nats: (num_tokens,) float16, -ln p of each token under the scorer; where scores were made against a
            reference model, what exceeds that model's.
        entropy_nats: (num_tokens,) float16, entropy of the scorer's prediction of each token.
        memory_nats: (num_tokens,) float16, -ln p of each token under the n-gram memory; (0,) without a memory.
        difficulty_nats: the segment's difficulty mass: sum over tokens of the nats above the threshold, where a token's
            nats are the smaller of what `difficulty.measure` says and memory.
        metadata: the document's carried columns as JSON, on segment 0 only.
        source: name of the source the document came from, "" where a run has but one.
    """

    doc_id: str
    segment_index: Int32
    num_segments: Int32
    token_start: int
    input_ids: TokenIds
    surprisal_nats: Float16s
    entropy_nats: Float16s
    memory_nats: Float16s
    difficulty_nats: float
    metadata: str | None = None
    source: str = ""

    @property
    def segment_id(self) -> str:
        return segment_id(self.doc_id, self.segment_index)


class ScoredDocument(Record, frozen=True, kw_only=True, eq=False):
    """All segments of a document in one record, for the way between workers: one element where there would be many.

    Attributes:
        segment_starts: (num_segments,) int64, the token that each segment begins with.
        input_ids, surprisal_nats, entropy_nats, memory_nats: of all its tokens; otherwise as in `ScoredSegment`.
        segment_difficulty_nats: (num_segments,) float64, the difficulty mass of each segment.
        metadata, source: as in `ScoredSegment`.
        cluster: as in `Document`; not among the segments at rest, but in a `NearCopy`.
    """

    doc_id: str
    segment_starts: np.ndarray
    input_ids: np.ndarray
    surprisal_nats: np.ndarray
    entropy_nats: np.ndarray
    memory_nats: np.ndarray
    segment_difficulty_nats: np.ndarray
    metadata: str | None = None
    source: str = ""
    cluster: str = ""

    def segments(self) -> Iterator[ScoredSegment]:
        """The segments as they rest on disk, in order; without what was not read of the document."""
        starts = self.segment_starts.tolist()
        ends = [*starts[1:], len(self.input_ids)]
        difficulties = self.segment_difficulty_nats.tolist() or [0.0] * len(starts)
        for index, (start, end, difficulty_nats) in enumerate(zip(starts, ends, difficulties, strict=True)):
            yield ScoredSegment(
                doc_id=self.doc_id,
                segment_index=index,
                num_segments=len(starts),
                token_start=start,
                input_ids=self.input_ids[start:end],
                surprisal_nats=self.surprisal_nats[start:end],
                entropy_nats=self.entropy_nats[start:end],
                memory_nats=self.memory_nats[start:end],
                difficulty_nats=difficulty_nats,
                metadata=self.metadata if index == 0 else None,
                source=self.source,
            )


class Request(Record, frozen=True, kw_only=True, eq=False):
    """The thinking one segment asks for: `samples` generations of one prompt by one model.

    Attributes:
        request_key: hash of all that decides the text (model, prompt token ids, sampling), without the sample index;
            segments with equal keys share their generations.
        samples: how many generations are wanted; sample i has the ledger key `sample_key(request_key, i)`.
        max_tokens: cap on the tokens of one generation.
        expected_tokens: tokens one generation is expected to take; orders the queue and prices the plan.
        prompt_tokens: of its prompt; of a recipe, of the first call's alone, as the others' hang on what that makes.
        prompt_token_ids: (prompt_tokens,) uint32 under the generator's tokenizer; not stored.
        shown_tokens: how many of the segment's training tokens, from its start, the prompt shows. The rest was held
            back, to tell what the trace is worth or because the thought is to stand before it.
        text, context, focus: of a tier with a recipe, what its prompts may show: `augment.recipes.SegmentView`.
        known: of a tier with a recipe, the rows of calls that runs which have not ended have made.
        begun: what there is of samples, or of a recipe's calls, that were interrupted.
    """

    doc_id: str
    segment_index: Int32
    tier: str
    model: str
    prompt: str
    request_key: str
    samples: Int32
    max_tokens: Int32
    expected_tokens: float
    prompt_tokens: Int32
    prompt_token_ids: NotStored
    shown_tokens: Int32
    text: NotStoredText = ""
    context: NotStoredText = ""
    focus: NotStoredTexts = msgspec.field(default_factory=list)
    known: Annotated[list[LedgerRow], Column(stored=False)] = msgspec.field(default_factory=list)
    begun: Annotated[list[LedgerRow], Column(stored=False)] = msgspec.field(default_factory=list)

    @property
    def segment_id(self) -> str:
        return segment_id(self.doc_id, self.segment_index)


class LedgerRow(Record, frozen=True, kw_only=True, eq=False):
    """One finished generation; never changed once written.

    A recipe's run has a row for each of its calls, and one for what came of it, which has the tokens of all, generated
    ones and those of prompts.

    Attributes:
        key: `sample_key(request_key, sample)`; of a recipe's call, that with its step and a hash of what decides it.
        segment_id: the segment it was first made for.
        model, revision, engine, engine_version: what generated it; `model` is the name from the config's model, or the
            one that answered in its place, and `engine` the engine family ("vllm", "rehearsal", ...).
        prompt, prompt_version: the prompt template; of a recipe's call, the version ends with "@" and the step.
        text: the generated text; special tokens left out, but for the marks of thinking.
        thought_tokens: how many tokens were generated and paid for, those that nobody saw included.
        prompt_tokens: of its prompt.
        token_ids: (at most thought_tokens,) uint32, generator token ids.
        sum_logprobs: sum of ln p of the generated tokens under the generator's sampling distribution, or None.
        finish_reason: as the engine said: "stop" or "length".
        closed: "natural" (the model ended it), "forced" (a closing call did) or "cut" (neither); "partial" of one that
            was interrupted, in a file of its own kind, which nobody takes for a finished one.
        wall_s: seconds from submission to completion.
        finished_at: Unix time in seconds, by the clock of the ledger's store where that and the machine's differ.
        step: of a recipe's call, its step; "" of what a tier asked for.
        made_from: keys of the rows it was made from: of a call those it was shown, of a recipe's outcome all its calls.
        wants: of a recipe's call, "thought" or "answer": which part of its text the recipe goes by.
        continued: how often it was interrupted and gone on with; of a recipe's outcome, all its calls together.
    """

    key: str
    request_key: str
    sample: Int32
    segment_id: str
    tier: str
    model: str
    revision: str
    engine: str
    engine_version: str
    prompt: str
    prompt_version: str
    text: str
    thought_tokens: Int32
    token_ids: Uint32s
    sum_logprobs: float | None
    finish_reason: str
    closed: str
    prompt_tokens: Int32
    wall_s: float
    finished_at: float
    step: str = ""
    made_from: list[str] = msgspec.field(default_factory=list)
    wants: str = "thought"
    continued: Int32 = 0

    @property
    def composed(self) -> bool:
        """Whether it is what came of a recipe, made from the rows of its calls and paid with them."""
        return not self.step and bool(self.made_from)


NOT_CHOSEN = "not_chosen"
"""The reason of a candidate that passed every gate while another one was kept."""


class Candidate(Record, frozen=True, kw_only=True, eq=False):
    """A trace considered for a segment: kept, or rejected with its reasons.

    Attributes:
        key: the ledger key.
        finish_reason: as the engine said.
        thought_tokens: tokens the generator wrote, in its own tokenizer.
        prompt_tokens: tokens it read for that; of a recipe, of the prompts of all its calls.
        text: the trace as it enters training, markers stripped.
        input_ids: (num_tokens,) training token ids of `text`, encoded as plain text.
        shown_tokens: how many of the segment's tokens the generator saw: see `Request`.
        value: what candidates are chosen by, in the value's own unit (nats for gains), or None without one.
        unvalued: why it has none though its tier is valued and no gate objected, in a word or two; "" otherwise.
        gain_nats: for values that are gains: what the trace adds to the log-probability of the text it is tried on.
        control_nats: the same for control traces, on average.
        hard_gain_nats: `gain_nats - control_nats`, over the hard tokens of that text alone.
        heldout_nats: `gain_nats - control_nats`, over the tokens of that text that `value` was not computed from.
        chance_value, chance_heldout_nats: `value` and `heldout_nats` of a control that was chosen among as many as
            this one was, in the same way, on average over the segments that gave the controls: what choosing brings by
            chance and by what any trace does for this text.
        contaminated: names of the benchmarks it overlaps with.
        kept: whether it goes into the corpus.
        reasons: every reason against it, the first one first; empty when kept.
    """

    doc_id: str
    segment_index: Int32
    key: str
    sample: Int32
    tier: str
    model: str
    prompt: str
    closed: str
    finish_reason: str
    thought_tokens: Int32
    text: str
    input_ids: TokenIds
    shown_tokens: Int32
    prompt_tokens: Int32 = 0
    value: float | None = None
    unvalued: str = ""
    gain_nats: float | None = None
    control_nats: float | None = None
    hard_gain_nats: float | None = None
    heldout_nats: float | None = None
    chance_value: float | None = None
    chance_heldout_nats: float | None = None
    contaminated: list[str] = msgspec.field(default_factory=list)
    kept: bool
    reasons: list[str]

    @property
    def segment_id(self) -> str:
        return segment_id(self.doc_id, self.segment_index)


class ContaminatedDocument(Record, frozen=True, kw_only=True, eq=False):
    """A document that overlaps with benchmarks: their names, and how many training tokens it has."""

    doc_id: str
    benchmarks: list[str]
    source_tokens: int


class NearCopy(Record, frozen=True, kw_only=True, eq=False):
    """A document that has near-copies, and the cluster of it and them: all of one cluster go into one split."""

    doc_id: str
    cluster: str


class FileEntry(Record, frozen=True, kw_only=True, eq=False, array_like=False):
    """What a manifest says of one file.

    Attributes:
        name: path from the stage's folder, or the export's; checked wherever it is read from, as it may be removed.
        size_bytes: length of the file.
        sha256: hex digest of its bytes.
        rows: number of records.
        tokens: counts of the tokens in it by kind, such as {"source": 900, "thought": 80}.
        padding_rows: of a shard: rows that are all padding, which a takedown leaves.
        unlabelled_rows: of a shard: other rows in which no token counts in the loss under the corpus's mask.
        batches: of a shard, for each of its record batches: where it ends in the file, and the CRC-32 of its bytes from
            the end of the one before, or from the head of the file.
    """

    name: str
    size_bytes: Size
    sha256: str
    rows: Size
    tokens: dict[str, Size] = msgspec.field(default_factory=dict)
    padding_rows: Size = 0
    unlabelled_rows: Size = 0
    batches: list[tuple[Size, Size]] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        if {"", ".", ".."} & set(self.name.split("/")) or set("\\\0:") & set(self.name):
            raise ValueError(f"{self.name[:200]!r} is no name of a file below the folder")


def segment_id(doc_id: str, segment_index: int) -> str:
    """The id of a segment: its document's id and its position."""
    return f"{doc_id}#{segment_index}"


def sample_key(request_key: str, sample: int) -> str:
    """The ledger key of one sample of a request."""
    return f"{request_key}-{sample}"
