"""Surprisal and entropy under any Hugging Face causal language model, on a CPU or a CUDA device.

Every document is read in overlapping windows (`windows`), windows of all documents are batched by length, and the
[tokens x vocabulary] matrix exists only a chunk of rows at a time: hidden states come from the model's body, and the
head runs over a few hundred of them at once.
"""

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from difficulty.config import DifficultyConfig
from difficulty.scorers.protocol import SEPARATOR, TokenScores, first_token_after
from difficulty.scorers.windows import Window, batch_by_length, cut_windows
from sharding.errors import MillError, RequestError
from sharding.models.store import model_fingerprint, resolve_model
from sharding.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of float32 logits; twice as much is held
_MAX_CHUNK_ROWS = 512
_FLOOR_NATS = -80.0  # exp of it is still a normal float32, and nothing against 1
_NEAR_CHARACTERS = 32  # of what follows: enough to tell how what precedes it is cut
_CHECK_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of logits, in nats: what separates rounding from another head


def describe_causal_lm(model: str, config: DifficultyConfig, *, revision: str | None = None) -> dict[str, Any]:
    """What decides the scores of a model, for the manifest; loads nothing."""
    where = resolve_model(model)
    return {
        "scorer": CausalLMScorer.name,
        "measure": "surprisal",
        "model": model,
        "revision": model_fingerprint(where, revision),
        "context_tokens": config.context_tokens,
        "min_context": config.min_context,
        "dtype": config.dtype,
        "versions": {package: _version(package) for package in ("torch", "transformers", "tokenizers")},
    }


class _Row(NamedTuple):
    """One window of one document, as a row of a batch."""

    document: int
    window: Window


class CausalLMScorer:
    """Scores texts with one causal language model; holds the model in memory.

    Attributes:
        tokenizer: the model's own, lossless.
        chunked: whether the head runs in chunks. Models that do more to their logits than a linear head (such as soft
            capping) are run whole, one window at a time.
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
            MillError: the model isn't there, isn't a causal language model, or doesn't fit its tokenizer.
            RequestError: there is no CUDA device, or the window is longer than the model can read.
        """
        torch = _import_torch()
        self._where = resolve_model(model)
        self._config = config
        self.device = _device(config.device)
        dtype = config.dtype if config.dtype != "auto" else {"cuda": "bfloat16", "cpu": "float32"}[self.device]
        self._dtype = dtype
        self.tokenizer = load_tokenizer(model, revision)
        self._start_id = self.tokenizer.start_of_text_id
        self.model = _load_model(self._where, revision, config.trust_remote_code, getattr(torch, dtype), self.device)
        self._head = self.model.get_output_embeddings()
        self._body = self.model.base_model
        self._check_limits()
        with torch.inference_mode():
            self.chunked = self._check_shape()
        if not self.chunked:
            logger.warning("%s does more to its logits than a linear head: scoring one window at a time", model)

    def score(self, texts: Sequence[str]) -> list[TokenScores]:
        """Scores of each text. Characters that the model's vocabulary lacks are read as spaces.

        Raises:
            UnencodableText: a text has lone surrogates, or the tokenizer alters it.
        """
        import torch

        documents = [self.tokenizer.encode_for_scoring(text) for text in texts]
        surprisal = [np.empty(len(ids), np.float32) for ids in documents]
        entropy = [np.empty(len(ids), np.float32) for ids in documents]
        with torch.inference_mode():
            for rows in self.batches(documents):
                input_ids, mask = self.inputs(documents, rows)
                nats = self._score_batch(documents, rows, input_ids, mask).float().cpu().numpy()
                at = 0
                for document, window in rows:
                    scored = slice(window.score_from, window.end)
                    num_scored = window.end - window.score_from
                    surprisal[document][scored], entropy[document][scored] = nats[:, at : at + num_scored]
                    at += num_scored
        return [
            TokenScores(self.tokenizer.byte_ends(ids), s, e)
            for ids, s, e in zip(documents, surprisal, entropy, strict=True)
        ]

    def nats_after(self, prefixes: Sequence[str], text: str, skipped: int) -> np.ndarray:
        """See `Scorer.nats_after`; the head runs over the tokens that are given, and over no others."""
        import torch

        ids = self.tokenizer.encode_for_scoring(text)
        first = first_token_after(self.tokenizer.byte_ends(ids), len(text[:skipped].encode()))
        before = [self._encode_before(prefix + SEPARATOR, text) if prefix else ids[:0] for prefix in prefixes]
        longest = max(map(len, before), default=0)
        room = self._config.context_tokens
        kept = min(len(ids), max(room - longest, room // 2, min(len(ids) - first, room)))
        ids, given = ids[len(ids) - kept :], min(len(ids) - first, kept)
        before = [prefix[max(0, len(prefix) - (room - kept)) :] for prefix in before]
        rows_of = [np.concatenate([prefix, ids]) for prefix in before]
        nats = np.empty((len(prefixes), given), np.float32)
        if not given:
            return nats
        lengths = [len(row) for row in rows_of]
        with torch.inference_mode():
            for batch in batch_by_length(lengths, self._config.batch_tokens if self.chunked else 0):
                rows = [_Row(number, Window(0, lengths[number] - given, lengths[number])) for number in batch]
                input_ids, mask = self.inputs(rows_of, rows)
                scored = self._score_batch(rows_of, rows, input_ids, mask)[0].float().cpu().numpy()
                nats[batch] = scored.reshape(len(batch), given)
        return nats

    def _encode_before(self, prefix: str, text: str) -> np.ndarray:
        """The prefix as tokens, cut as it is in front of the text: white space is often cut by what follows it."""
        size_bytes = len(prefix.encode())
        ids = self.tokenizer.encode_for_scoring(prefix + text[:_NEAR_CHARACTERS])
        ids = ids[: np.searchsorted(self.tokenizer.byte_ends(ids), size_bytes, side="right")]
        covered_bytes = int(self.tokenizer.byte_ends(ids)[-1]) if len(ids) else 0
        return ids if covered_bytes == size_bytes else self.tokenizer.encode_for_scoring(prefix)

    def batches(self, documents: Sequence[np.ndarray]) -> Iterator[list[_Row]]:
        """The rows of each forward pass that scores these documents (token ids of each)."""
        rows = [
            _Row(number, window)
            for number, ids in enumerate(documents)
            for window in cut_windows(len(ids), self._config.context_tokens, self._config.min_context)
        ]
        batch_tokens = self._config.batch_tokens if self.chunked else 0
        for batch in batch_by_length([row.window.end - row.window.start for row in rows], batch_tokens):
            yield [rows[index] for index in batch]

    def inputs(
        self, documents: Sequence[np.ndarray], rows: Sequence[_Row]
    ) -> tuple["torch.Tensor", "torch.Tensor | None"]:
        """What the model reads: (rows, longest) int64 ids and, where rows differ in length, a mask of what is real.

        A row is the start token and all tokens of its window but the last: position i predicts the window's token i.
        """
        import torch

        lengths = [window.end - window.start for _, window in rows]
        ids = np.full((len(rows), max(lengths)), self._start_id, np.int64)
        for row, (document, window) in enumerate(rows):
            ids[row, 1 : lengths[row]] = documents[document][window.start : window.end - 1]
        mask = None
        if min(lengths) < max(lengths):
            real = np.arange(max(lengths)) < np.array(lengths)[:, None]
            mask = torch.from_numpy(real.astype(np.int64)).to(self.device)
        return torch.from_numpy(ids).to(self.device), mask

    def _score_batch(
        self,
        documents: Sequence[np.ndarray],
        rows: Sequence[_Row],
        input_ids: "torch.Tensor",
        mask: "torch.Tensor | None",
    ) -> "torch.Tensor":
        """Surprisal and entropy, (2, scored tokens) float32, of the rows' scored tokens one after the other."""
        import torch

        targets = np.concatenate([documents[row.document][row.window.score_from : row.window.end] for row in rows])
        target_ids = torch.from_numpy(targets.astype(np.int64)).to(self.device)
        scored = torch.zeros(input_ids.shape, dtype=torch.bool)
        for row, (_, window) in enumerate(rows):
            scored[row, window.score_from - window.start : window.end - window.start] = True
        scored = scored.to(self.device)
        if not self.chunked:
            logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[scored].float()
            return _nats(logits, target_ids, torch.empty_like(logits))
        hidden = self._body(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state[scored]
        nats = torch.empty((2, len(hidden)), dtype=torch.float32, device=hidden.device)
        # Written over chunk after chunk: fresh memory for each would cost a CPU more time than the arithmetic.
        logits = torch.empty((self.chunk_rows, self._vocab_size), dtype=torch.float32, device=hidden.device)
        weights = torch.empty_like(logits)
        for at in range(0, len(hidden), self.chunk_rows):
            chunk = slice(at, at + self.chunk_rows)
            rows_here = len(hidden[chunk])
            self._write_logits(hidden[chunk], logits[:rows_here])
            nats[:, chunk] = _nats(logits[:rows_here], target_ids[chunk], weights[:rows_here])
        return nats

    def _write_logits(self, hidden: "torch.Tensor", out: "torch.Tensor") -> None:
        """The head's logits of some hidden states, into (rows, vocabulary) float32."""
        import torch

        if type(self._head) is torch.nn.Linear and self._head.bias is None and hidden.dtype == out.dtype:
            torch.mm(hidden, self._head.weight.T, out=out)
        else:
            out.copy_(self._head(hidden))

    @property
    def chunk_rows(self) -> int:
        """Rows of the [tokens x vocabulary] matrix that exist at once."""
        return max(1, min(_CHUNK_BYTES[self.device] // (4 * self._vocab_size), _MAX_CHUNK_ROWS))

    def _check_limits(self) -> None:
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and self._config.context_tokens > longest:
            raise RequestError(
                f"difficulty.context_tokens: {self._config.context_tokens}: "
                f"the model {self._where} reads at most {longest} tokens"
            )
        embedded = self.model.get_input_embeddings().weight.shape[0]
        if self.tokenizer.vocab_size > embedded:
            raise MillError(
                f"model {self._where}: its tokenizer has {self.tokenizer.vocab_size} ids, its embeddings {embedded}; "
                "the two don't belong together"
            )

    def _check_shape(self) -> bool:
        """Whether body and head give the logits of the whole model, tried on a few tokens.

        Raises:
            MillError: a later token changes the prediction of an earlier one: no causal model.
        """
        import torch

        spread = np.linspace(0, self.tokenizer.vocab_size - 1, 16).astype(np.int64)
        input_ids = torch.from_numpy(np.stack([spread, spread])).to(self.device)
        input_ids[1, -1] = int(spread[0])
        logits = self.model(input_ids=input_ids, use_cache=False).logits.float()
        tolerance = _CHECK_TOLERANCE[self._dtype]
        if not torch.allclose(logits[0, :-1], logits[1, :-1], atol=tolerance, rtol=tolerance):
            raise MillError(f"model {self._where} is no causal language model: it looks ahead; name a decoder model")
        self._vocab_size = int(logits.shape[-1])
        if self._head is None or self._body is self.model:
            return False
        hidden = getattr(self._body(input_ids=input_ids, use_cache=False), "last_hidden_state", None)
        if hidden is None or self._head(hidden[0]).shape != logits[0].shape:
            return False
        chunked = torch.empty_like(logits[0])
        self._write_logits(hidden[0], chunked)
        return torch.allclose(chunked, logits[0], atol=tolerance, rtol=tolerance)


def _nats(logits: "torch.Tensor", target_ids: "torch.Tensor", scratch: "torch.Tensor") -> "torch.Tensor":
    """Surprisal of the targets and entropy of the predictions, (2, rows) float32.

    Overwrites `logits` and `scratch`, both (rows, vocabulary) float32.

    With z the logits less their maximum and Z the sum of exp(z): surprisal = ln Z - z[target] and
    entropy = ln Z - sum(z exp(z)) / Z.
    """
    import torch

    logits -= logits.amax(dim=-1, keepdim=True)
    target = logits.gather(1, target_ids[:, None])[:, 0]
    logits.clamp_(min=_FLOOR_NATS)  # -inf would make 0 * inf below, and denormals are slow
    weights = torch.exp(logits, out=scratch)
    total = weights.sum(dim=-1)
    log_total = total.log()
    mean = weights.mul_(logits).sum(dim=-1) / total
    return torch.stack([log_total - target, (log_total - mean).clamp_(min=0.0)])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _import_torch() -> Any:
    try:
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise MillError(
            f"scorer causal_lm needs {error.name}, which is not installed: pip install 'thoughtmill[score]'"
        ) from error
    return torch


def _device(wanted: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise RequestError("difficulty.device: 'cuda': torch finds no CUDA device here; use 'auto' or 'cpu'")
    return "cuda" if available and wanted != "cpu" else "cpu"


def _load_model(where: str, revision: str | None, trust_remote_code: bool, dtype: "torch.dtype", device: str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype
        )
    except (OSError, ValueError, ImportError, SafetensorError, UnpicklingError) as error:
        raise MillError(
            f"model {where!r} can't be loaded as a causal language model: {error}\n"
            "Name a local folder, a model from `thoughtmill models fetch`, or a hub id that can be reached from here."
        ) from error
    return model.to(device).eval()
