"""What a student writes, and how likely it finds a text: for evaluators. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from pipelines.ablation.student import read_texts
from sharding.hashing import seed_of
from sharding.models.tokenizer import TextTokenizer

_BATCH = 64


def generate_ids(
    model: Any,
    prompts: Sequence[np.ndarray],
    *,
    max_tokens: int,
    stop: Sequence[np.ndarray] = (),
    temperature: float = 0.0,
    seed: int = 0,
    vocab_size: int | None = None,
) -> list[np.ndarray]:
    """What a student writes behind prompts.

    Args:
        model: the student.
        prompts: (num_tokens,) token ids each, at least one.
        max_tokens: at most so many tokens each.
        stop: sequences of token ids at which a text ends; they are left out of it.
        temperature: 0: the most likely token each time.
        seed: of what is sampled; the same prompts and seed give the same texts.
        vocab_size: tokens of the tokenizer, where the student has embeddings for more; those are never written.

    Returns:
        (num_tokens,) int64 token ids for each prompt, in order.
    """
    return _generate(model, prompts, partial(_ends_with, stop=stop), max_tokens, temperature, seed, vocab_size, stop)


def _generate(
    model: Any,
    prompts: Sequence[np.ndarray],
    has_ended: Callable[[np.ndarray], bool],
    max_tokens: int,
    temperature: float,
    seed: int,
    vocab_size: int | None,
    stop: Sequence[np.ndarray] = (),
) -> list[np.ndarray]:
    written: list[np.ndarray] = []
    # Prompts of one length stand together, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed_of(f"{seed}/{start}"))
            some = [prompts[place] for place in places]
            found = _written(model, some, has_ended, max_tokens, temperature, vocab_size)
            written += [_until(text, stop) for text in found]
    return [text for _, text in sorted(zip(order, written, strict=True), key=lambda pair: pair[0])]


@torch.no_grad()
def _written(
    model: Any,
    prompts: Sequence[np.ndarray],
    has_ended: Callable[[np.ndarray], bool],
    max_tokens: int,
    temperature: float,
    vocab_size: int | None,
) -> np.ndarray:
    """(prompts, at most max_tokens) int64."""
    size = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), size, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for place, prompt in enumerate(prompts):  # padded at the left: what is written goes on at the right
        input_ids[place, size - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[place, size - len(prompt) :] = 1
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    known = model.get_input_embeddings().weight.shape[0]
    if vocab_size is not None and known > vocab_size:
        sampling["suppress_tokens"] = list(range(vocab_size, known))
    found = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_tokens,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([_AllEnded(has_ended, size)]),
        **sampling,
    )
    new: np.ndarray = found[:, size:].cpu().numpy()
    return new


class _AllEnded(StoppingCriteria):
    """Stops when every text has come to its end; one alone would be filled with padding, a token like any other."""

    def __init__(self, has_ended: Callable[[np.ndarray], bool], prompt_size: int) -> None:
        self._has_ended, self._prompt_size = has_ended, prompt_size
        self._open: set[int] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self._prompt_size :].cpu().numpy()
        self._open = {
            place
            for place in (range(len(new)) if self._open is None else self._open)
            if not self._has_ended(new[place])
        }
        return torch.full((len(new),), not self._open, device=input_ids.device)


def _ends_with(text: np.ndarray, stop: Sequence[np.ndarray]) -> bool:
    return any(len(end) and len(text) >= len(end) and np.array_equal(text[-len(end) :], end) for end in stop)


def _until(text: np.ndarray, stop: Sequence[np.ndarray]) -> np.ndarray:
    """The text up to the first of the sequences."""
    first = len(text)
    for end in stop:
        for at in range(min(first, len(text) - len(end) + 1)) if len(end) else ():
            if np.array_equal(text[at : at + len(end)], end):
                first = at
                break
    return text[:first]


def nats_behind(model: Any, prompts: Sequence[np.ndarray], continuations: Sequence[np.ndarray]) -> list[np.ndarray]:
    """How unexpected continuations are behind prompts.

    Args:
        model: the student.
        prompts: (num_tokens,) token ids each, at least one.
        continuations: as many, (num_tokens,) token ids each.

    Returns:
        (num_tokens,) float32 for each continuation: surprisal of its tokens in nats.
    """
    texts = [np.concatenate(pair).astype(np.int64) for pair in zip(prompts, continuations, strict=True)]
    read = read_texts(model, texts)
    return [nats[len(prompt) - 1 :] for prompt, (nats, _) in zip(prompts, read, strict=True)]


class Generate:
    """A student as a user's own evaluator is given it: prompts → texts.

    Attributes:
        model, tokenizer: the student and the training tokenizer, for whoever needs more.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 64,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """What the student writes behind each prompt; without the text that it stopped at.

        Args:
            prompts: texts as they stand at the beginning of a document; none may be empty.
            max_tokens: at most so many tokens each.
            stop: texts at which to stop.
            temperature: 0: the most likely token each time.
            seed: of what is sampled.
        """
        # Stops are looked for in the text: what a student writes may be spelled by other tokens than a stop alone is.
        ids = _generate(
            self.model,
            [self.tokenizer.encode_trusted(prompt) for prompt in prompts],
            partial(self._has_stopped, ends=[end.encode() for end in stop if end]),
            max_tokens,
            temperature,
            seed,
            self.tokenizer.vocab_size,
        )
        texts = [self.tokenizer.decode(text) for text in ids]
        return [min((text.split(end, 1)[0] for end in stop if end), key=len, default=text) for text in texts]

    def _has_stopped(self, text: np.ndarray, ends: Sequence[bytes]) -> bool:
        longest = max(map(len, ends), default=0)  # a token is a byte at least
        tail = self.tokenizer.decode_bytes(text[-longest:]) if longest else b""
        return any(end in tail for end in ends)

    def log_probabilities(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """ln p of each continuation behind its prompt."""
        encode = self.tokenizer.encode_trusted
        found = nats_behind(self.model, list(map(encode, prompts)), list(map(encode, continuations)))
        return [-float(nats.sum()) for nats in found]
