"""A causal language model and the nats it gives to tokens: the only module that needs torch for scoring.

`causal_lm` cuts documents into windows and batches; here a batch goes through the model. The [tokens x vocabulary]
matrix exists only a chunk of rows at a time: hidden states come from the model's body, and the head runs over a few
hundred of them at once.
"""

import logging
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from difficulty.config import DifficultyConfig
from sharding.errors import MillError, RequestError
from sharding.models.store import resolve_model

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # of float32 logits; twice as much is held
_MAX_CHUNK_ROWS = 512
_FLOOR_NATS = -80.0  # exp of it is still a normal float32, and nothing against 1
_CHECK_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # of logits, in nats: what separates rounding from another head


class CausalModel:
    """A loaded model. What it is given and gives is numpy; torch stays inside.

    Attributes:
        model: as transformers loads it.
        device: "cpu" or "cuda".
        chunked: whether the head runs in chunks. Models that do more to their logits than a linear head (such as soft
            capping) are run whole.
    """

    def __init__(self, model: str, config: DifficultyConfig, *, revision: str | None, num_ids: int) -> None:
        """Loads the model.

        Args:
            model: a folder, a fetched model's name or a hub id.
            config: the longest window, device and number type.
            revision: hub revision.
            num_ids: how many ids its tokenizer has.

        Raises:
            MillError: the model isn't there, isn't a causal language model, or doesn't fit its tokenizer.
            RequestError: there is no CUDA device, or the window is longer than the model can read.
        """
        torch = _import_torch()
        self._where = resolve_model(model)
        self.device = _device(config.device)
        self._dtype = config.dtype if config.dtype != "auto" else {"cuda": "bfloat16", "cpu": "float32"}[self.device]
        dtype = getattr(torch, self._dtype)
        self.model = _load_model(self._where, revision, config.trust_remote_code, dtype, self.device)
        self._head = self.model.get_output_embeddings()
        self._body = self.model.base_model
        self._check_limits(config.context_tokens, num_ids)
        with torch.inference_mode():
            self.chunked = self._check_shape(num_ids)
        if not self.chunked:
            logger.warning("%s does more to its logits than a linear head: scoring one window at a time", model)

    def tensors(self, input_ids: np.ndarray, lengths: np.ndarray) -> "tuple[torch.Tensor, torch.Tensor | None]":
        """What the model reads: (rows, longest) ids, and a mask of what is real where (rows,) lengths differ."""
        import torch

        mask = None
        if lengths.min() < lengths.max():
            real = np.arange(input_ids.shape[1]) < lengths[:, None]
            mask = torch.from_numpy(real.astype(np.int64)).to(self.device)
        return torch.from_numpy(input_ids).to(self.device), mask

    def nats(self, input_ids: np.ndarray, lengths: np.ndarray, scored: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Surprisal and entropy, (2, scored tokens) float32.

        Args:
            input_ids: (rows, longest) int64; position i predicts the token after it.
            lengths: (rows,) how many ids of each row are real.
            scored: (rows, longest) bool, the positions whose predictions are looked at.
            targets: (scored tokens,) the tokens that came, row after row.
        """
        import torch

        with torch.inference_mode():
            ids, mask = self.tensors(input_ids, lengths)
            target_ids = torch.from_numpy(targets.astype(np.int64)).to(self.device)
            nats = self._nats(ids, mask, torch.from_numpy(scored).to(self.device), target_ids)
            found: np.ndarray = nats.float().cpu().numpy()
            return found

    def _nats(
        self, ids: "torch.Tensor", mask: "torch.Tensor | None", scored: "torch.Tensor", target_ids: "torch.Tensor"
    ) -> "torch.Tensor":
        import torch

        if not self.chunked:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[scored].float()
            return nats_of_logits(logits, target_ids, torch.empty_like(logits))
        hidden = self._body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[scored]
        nats = torch.empty((2, len(hidden)), dtype=torch.float32, device=hidden.device)
        # Written over chunk after chunk: fresh memory for each would cost a CPU more time than the arithmetic.
        logits = torch.empty((self.chunk_rows, self._vocab_size), dtype=torch.float32, device=hidden.device)
        weights = torch.empty_like(logits)
        for at in range(0, len(hidden), self.chunk_rows):
            chunk = slice(at, at + self.chunk_rows)
            rows_here = len(hidden[chunk])
            self._write_logits(hidden[chunk], logits[:rows_here])
            nats[:, chunk] = nats_of_logits(logits[:rows_here], target_ids[chunk], weights[:rows_here])
        return nats

    def _write_logits(self, hidden: "torch.Tensor", out: "torch.Tensor") -> None:
        """The head's logits of some hidden states, into (rows, vocabulary) float32."""
        import torch

        if type(self._head) is torch.nn.Linear and self._head.bias is None and hidden.dtype == out.dtype:
            torch.mm(hidden, self._head.weight.T, out=out)
        else:
            out.copy_(self._head(hidden))

    @property
    def longest_tokens(self) -> int | None:
        """The longest window that the model can read; None where its config doesn't say."""
        longest: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return longest

    @property
    def chunk_rows(self) -> int:
        """Rows of the [tokens x vocabulary] matrix that exist at once."""
        return max(1, min(_CHUNK_BYTES[self.device] // (4 * self._vocab_size), _MAX_CHUNK_ROWS))

    def _check_limits(self, context_tokens: int, num_ids: int) -> None:
        longest = self.longest_tokens
        if longest is not None and context_tokens > longest:
            raise RequestError(
                f"difficulty.context_tokens: {context_tokens}: the model {self._where} reads at most {longest} tokens"
            )
        embedded = self.model.get_input_embeddings().weight.shape[0]
        if num_ids > embedded:
            raise MillError(
                f"model {self._where}: its tokenizer has {num_ids} ids, its embeddings {embedded}; "
                "the two don't belong together"
            )

    def _check_shape(self, num_ids: int) -> bool:
        """Whether body and head give the logits of the whole model, tried on a few tokens.

        Raises:
            MillError: a later token changes the prediction of an earlier one: no causal model.
        """
        import torch

        some_ids = np.linspace(0, num_ids - 1, 16).astype(np.int64)
        input_ids = torch.from_numpy(np.stack([some_ids, some_ids])).to(self.device)
        input_ids[1, -1] = int(some_ids[0])
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


def nats_of_logits(logits: "torch.Tensor", target_ids: "torch.Tensor", scratch: "torch.Tensor") -> "torch.Tensor":
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
