"""Surprisal and entropy under any Hugging Face causal language model, on a CPU or a CUDA device.

Every document is read in overlapping windows (`windows`), and windows of all documents are batched by length; the model
itself is in `causal_model`. With a reference model the surprisal is what exceeds the reference's (`excess`).
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.scorers.causal_model import CausalModel
from difficulty.scorers.excess import ExcessLossScorer
from difficulty.scorers.protocol import Scorer, TokenScores
from difficulty.scorers.reading import NatsAfter, rows_after, window_of
from difficulty.scorers.windows import Window, batch_by_length, cut_windows
from sharding import tally
from sharding.models.store import model_fingerprint, resolve_model
from sharding.models.tokenizer import load_tokenizer


def make(config: DifficultyConfig) -> Scorer:
    """The scorer that the config asks for, its models loaded."""
    assert config.model is not None  # the config's validator has seen to it
    scorer = CausalLMScorer(config.model, config, revision=config.revision)
    if config.reference_model is None:
        return scorer
    return ExcessLossScorer(scorer, CausalLMScorer(config.reference_model, config))


def describe(config: DifficultyConfig) -> dict[str, Any]:
    """What decides its scores, for the manifest; loads nothing.

    The number type is the one asked for, as "auto" is decided where the scorer runs.
    """
    assert config.model is not None
    described = _describe_model(config.model, config, config.revision)
    if config.reference_model is None:
        return described
    reference = _describe_model(config.reference_model, config, None)
    return {**described, "measure": "excess_loss", "reference": reference}


def _describe_model(model: str, config: DifficultyConfig, revision: str | None) -> dict[str, Any]:
    return {
        "scorer": CausalLMScorer.name,
        "measure": "surprisal",
        "model": model,
        "revision": model_fingerprint(resolve_model(model), revision),
        "context_tokens": config.context_tokens,
        "min_context": config.min_context,
        "dtype": config.dtype,
        "versions": {package: _version(package) for package in ("torch", "transformers", "tokenizers")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _Row(NamedTuple):
    """One window of one document, as a row of a batch."""

    document: int
    window: Window


class CausalLMScorer:
    """Scores texts with one causal language model; holds the model in memory.

    Attributes:
        tokenizer: the model's own, lossless.
        model: the model; where it isn't `chunked`, batches are of one window.
    """

    name = "causal_lm"
    rehearsal = False

    def __init__(self, model: str, config: DifficultyConfig, *, revision: str | None = None) -> None:
        """Loads the model.

        Args:
            model: a folder, a fetched model's name or a hub id.
            config: windows, batches, device and number type.
            revision: hub revision.

        Raises:
            MillError, RequestError: it can't be loaded, or can't score: see `CausalModel`.
        """
        self._config = config
        resolve_model(model)  # a folder that isn't there is said to be that, not to lack a tokenizer
        self.tokenizer = load_tokenizer(model, revision)
        self._start_id = self.tokenizer.start_of_text_id
        self.model = CausalModel(model, config, revision=revision, num_ids=self.tokenizer.vocab_size)

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        """Scores of each text. Characters that the model's vocabulary lacks are read as spaces.

        Raises:
            UnencodableText: a text has lone surrogates, or the tokenizer alters it.
        """
        documents = [self.tokenizer.encode_for_scoring(text) for text in texts]
        surprisal = [np.empty(len(ids), np.float32) for ids in documents]
        entropy = [np.empty(len(ids), np.float32) for ids in documents]
        for rows in self.batches(documents):
            nats = self._nats(documents, rows)
            at = 0
            for document, window in rows:
                scored = slice(window.score_from, window.end)
                num_scored = window.end - window.score_from
                surprisal[document][scored], entropy[document][scored] = nats[:, at : at + num_scored]
                at += num_scored
            tally.add(scored_tokens=at)
        return [
            TokenScores(self.tokenizer.byte_ends(ids), s, e)
            for ids, s, e in zip(documents, surprisal, entropy, strict=True)
        ]

    def nats_after(
        self, prefixes: Sequence[str], text: str, skipped: int, *, prefix_tokens: int, context_tokens: int | None = None
    ) -> NatsAfter:
        """See `Scorer.nats_after`; the head runs over the tokens that are given, and over no others."""
        window = window_of(context_tokens, self.model.longest_tokens, self._config.model)
        rows = rows_after(self.tokenizer, prefixes, text, skipped, prefix_tokens=prefix_tokens, context_tokens=window)
        read = [ids for ids in rows.ids if ids is not None]
        nats = np.empty((len(read), rows.given), np.float32)
        lengths = [len(ids) for ids in read]
        for batch in batch_by_length(lengths, self._batch_tokens) if rows.given else ():
            windows = [_Row(number, Window(0, lengths[number] - rows.given, lengths[number])) for number in batch]
            nats[batch] = self._nats(read, windows)[0].reshape(len(batch), rows.given)
        return rows.gathered(nats)

    @property
    def _batch_tokens(self) -> int:
        return self._config.batch_tokens if self.model.chunked else 0

    def batches(self, documents: Sequence[np.ndarray]) -> Iterator[list[_Row]]:
        """The rows of each forward pass that scores these documents (token ids of each)."""
        rows = [
            _Row(number, window)
            for number, ids in enumerate(documents)
            for window in cut_windows(len(ids), self._config.context_tokens, self._config.min_context)
        ]
        for batch in batch_by_length([row.window.end - row.window.start for row in rows], self._batch_tokens):
            yield [rows[index] for index in batch]

    def inputs(self, documents: Sequence[np.ndarray], rows: Sequence[_Row]) -> tuple[np.ndarray, np.ndarray]:
        """What the model reads: (rows, longest) int64 ids, and the (rows,) lengths of the rows.

        A row is the start token and all tokens of its window but the last: position i predicts the window's token i.
        """
        lengths = np.array([window.end - window.start for _, window in rows])
        ids = np.full((len(rows), lengths.max()), self._start_id, np.int64)
        for row, (document, window) in enumerate(rows):
            ids[row, 1 : lengths[row]] = documents[document][window.start : window.end - 1]
        return ids, lengths

    def _nats(self, documents: Sequence[np.ndarray], rows: Sequence[_Row]) -> np.ndarray:
        """Surprisal and entropy, (2, scored tokens) float32, of the rows' scored tokens one after the other."""
        ids, lengths = self.inputs(documents, rows)
        scored = np.zeros(ids.shape, np.bool_)
        for row, (_, window) in enumerate(rows):
            scored[row, window.score_from - window.start : window.end - window.start] = True
        targets = np.concatenate([documents[row.document][row.window.score_from : row.window.end] for row in rows])
        return self.model.nats(ids, lengths, scored, targets)
