"""The student: a small decoder of `transformers`, made anew from a seed, and what it says of rows of tokens.

Rows hold several documents. A student reads each as if it were alone: attention stays within documents, and positions
begin anew. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.ablation.config import AblationConfig, StudentConfig
from pipelines.ablation.named_models import named_model
from sharding.errors import RequestError

_CHUNK_TOKENS = 8192
"""Rows of logits that are held at a time when a text is scored."""


def new_student(config: StudentConfig, vocab_size: int, sequence_length: int, seed: int) -> Any:
    """A model with weights that follow from the seed alone; or the one of `checkpoint`.

    Raises:
        RequestError: a model that is named can't be loaded, or has a smaller vocabulary.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if (found := named_model(config)) is None:
            eighths = -(-config.width * 8 // 3 // 8)
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocab_size,
                    hidden_size=config.width,
                    intermediate_size=config.feed_forward or 8 * eighths,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    num_key_value_heads=config.heads,
                    max_position_embeddings=sequence_length,
                    tie_word_embeddings=config.tied,
                    bos_token_id=None,
                    eos_token_id=None,
                    pad_token_id=None,
                    attn_implementation="sdpa",
                )
            )
        (key, place), named = found, config.checkpoint or config.config
        try:
            if config.checkpoint is not None:
                model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="sdpa")
            else:
                told = AutoConfig.from_pretrained(place)
                told.vocab_size = vocab_size
                model = AutoModelForCausalLM.from_config(told, dtype=torch.float32, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise RequestError(f"ablation.model.{key}: {named!r} can't be loaded: {error}") from error
    if model.get_input_embeddings().weight.shape[0] < vocab_size:
        known = model.get_input_embeddings().weight.shape[0]
        raise RequestError(f"ablation.model.{key}: {named!r} knows {known} tokens, the corpus has {vocab_size}")
    return model


def within_documents(lengths: Sequence[Sequence[int]], size: int) -> torch.Tensor:
    """Who sees whom: a token the tokens of its document up to itself.

    Args:
        lengths: of each row, the tokens of each document in it; they add up to `size`.
        size: tokens of a row.

    Returns:
        (rows, 1, size, size) bool, True where the token of the second last axis sees that of the last.
    """
    documents = torch.from_numpy(np.stack([np.repeat(np.arange(len(row)), row) for row in lengths]))
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones(size, size, dtype=torch.bool).tril()


def logits_of(model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(rows, size, vocabulary) what the model expects behind each token."""
    device = model.device
    found: torch.Tensor = model(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        attention_mask=mask.to(device),
        use_cache=False,
    ).logits
    return found


def batch_of(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rows of a `PackedDataset` as a student takes them: input_ids, position_ids, labels, mask."""
    stacked = {
        name: torch.from_numpy(np.stack([row[name] for row in rows]))
        for name in ("input_ids", "position_ids", "labels")
    }
    lengths = [np.diff(row["cu_seqlens"]).tolist() for row in rows]
    return stacked | {"mask": within_documents(lengths, stacked["input_ids"].shape[1])}


def summed_nats(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the surprisal of all labelled tokens of a batch, in nats; differentiable."""
    logits = logits_of(model, batch["input_ids"], batch["position_ids"], batch["mask"])
    labels = batch["labels"][:, 1:].to(logits.device)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")


def labelled(batch: dict[str, torch.Tensor]) -> int:
    """How many tokens of a batch are labelled and predicted."""
    return int((batch["labels"][:, 1:] != -100).sum())


@torch.no_grad()
def read_texts(model: Any, texts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a student finds in texts, each read alone, from its beginning.

    Args:
        texts: (num_tokens,) token ids each.

    Yields:
        For each text, in order, of the tokens behind the first: (num_tokens - 1,) float32 surprisal in nats, and
        (num_tokens - 1,) bool, whether the token was the most likely one.
    """
    for some in _batches(texts):
        size = max(map(len, some))
        input_ids = torch.zeros(len(some), size, dtype=torch.long)
        for place, text in enumerate(some):
            input_ids[place, : len(text)] = torch.from_numpy(text.astype(np.int64))
        positions = torch.arange(size).expand(len(some), -1)
        mask = within_documents([[size]] * len(some), size)  # padding stands behind and is seen by none
        logits = logits_of(model, input_ids, positions, mask).float()[:, :-1]
        targets = input_ids[:, 1:].to(logits.device)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        right = (logits.argmax(-1) == targets).cpu().numpy()
        for place, text in enumerate(some):
            yield nats[place, : len(text) - 1].cpu().numpy(), right[place, : len(text) - 1]


def _batches(texts: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Texts in their order, in batches that padded have at most `_CHUNK_TOKENS`."""
    some: list[np.ndarray] = []
    for text in texts:
        if some and (len(some) + 1) * max(len(text), *map(len, some)) > _CHUNK_TOKENS:
            yield some
            some = []
        some.append(text)
    if some:
        yield some


def device_of(config: AblationConfig, number: int = 0) -> str:
    """Where the student of this number is trained."""
    if config.device != "auto":
        return config.device
    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
