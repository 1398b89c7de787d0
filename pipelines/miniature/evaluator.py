"""Statements about people of whom no statement was ever read: the evaluator of the miniature.

Named in the config as "pipelines.miniature.evaluator:StatementAccuracy". Imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.ablation.generation import generate_ids, nats_behind
from pipelines.miniature.tokens import THINK_CLOSE, THINK_OPEN
from pipelines.miniature.world import Statement, load_world
from sharding.errors import RequestError
from sharding.hashing import seed_of
from sharding.models.tokenizer import TextTokenizer

MAX_THOUGHT_TOKENS = 32
"""More than the longest chain has."""


@dataclass(frozen=True, eq=False)
class _Said:
    """What a student says behind prompts.

    Attributes:
        answers: (prompts,) int64, the first token of each answer.
        nats: (prompts,) surprisal of the thought, if there is one, and the answer. Whether to think at all isn't
            counted: how often a corpus does is its budget's business.
    """

    answers: np.ndarray
    nats: np.ndarray


class StatementAccuracy:
    """Shares of statements about held-out people that come out right.

    A student is given two plain facts and a sentence up to its answer, as its corpus has them. All that it writes is
    its most likely token each time. An answer is one word and one token.

        silent     right at once, without a thought
        thought    right behind a thought of its own
        chain      that, and the thought says word for word how it follows
        either     right where both ways are open, and it goes the one whose words it finds likelier, thought and answer
                   together. A student that was shown no thoughts isn't made to think.

    Args:
        world: file of the world.
        statements: how many are asked.
        seed: of which ones.

    Raises:
        RequestError: the tokenizer has no single tokens for thoughts and answers.
    """

    def __init__(self, world: str, statements: int = 96, seed: int = 0) -> None:
        known = load_world(world)
        draw = random.Random(seed_of(f"miniature questions {seed}"))
        about = [found for found in known.statements.values() if known.held_out[found.person]]
        self._asked = draw.sample(about, min(statements, len(about)))
        self._openings = [known.opening(statement) for statement in self._asked]

    def evaluate(self, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
        """The shares, each from 0 to 1."""
        asked = self._asked
        right = _right_answers(asked, tokenizer)
        prompts = [tokenizer.encode(text).astype(np.int64) for text in self._openings]
        silent = _silently(model, prompts, tokenizer)
        thoughts, thinking = _thinking(model, prompts, tokenizer)
        chains = np.array([tokenizer.decode(ids) == said.chain for ids, said in zip(thoughts, asked, strict=True)])
        behind_thought = thinking.answers == right
        return {
            "either": float((_surer(silent, thinking) == right).mean()),
            "silent": float((silent.answers == right).mean()),
            "thought": float(behind_thought.mean()),
            "chain": float((behind_thought & chains).mean()),
        }


def _right_answers(asked: Sequence[Statement], tokenizer: TextTokenizer) -> np.ndarray:
    """(statements,) int64 token ids."""
    ids = [tokenizer.encode(f" {statement.answer}") for statement in asked]
    if long := [statement.answer for statement, found in zip(asked, ids, strict=True) if len(found) != 1]:
        raise RequestError(f"tokenizer: {long[0]!r} is not one token; use the one that the miniature trains")
    return np.array([int(found[0]) for found in ids], np.int64)


def _mark(text: str, tokenizer: TextTokenizer) -> np.ndarray:
    token = tokenizer.token_id(text)
    if token is None:
        raise RequestError(f"tokenizer: {text} is not a token; use the one that the miniature trains")
    return np.array([token], np.int64)


def _silently(model: Any, prompts: Sequence[np.ndarray], tokenizer: TextTokenizer) -> _Said:
    """The answers without a thought."""
    logits = _last_logits(model, prompts, tokenizer)
    return _first(logits)


def _thinking(model: Any, prompts: Sequence[np.ndarray], tokenizer: TextTokenizer) -> tuple[list[np.ndarray], _Said]:
    """The student's own thoughts, (num_tokens,) each, and the answers behind them."""
    begin, end = _mark(THINK_OPEN, tokenizer), _mark(THINK_CLOSE, tokenizer)
    opened = [np.concatenate([prompt, begin]) for prompt in prompts]
    thoughts = generate_ids(model, opened, max_tokens=MAX_THOUGHT_TOKENS, stop=[end], vocab_size=tokenizer.vocab_size)
    written = [np.concatenate([thought, end]) for thought in thoughts]
    closed = [np.concatenate(pair) for pair in zip(opened, written, strict=True)]
    nats = np.array([float(found.sum()) for found in nats_behind(model, opened, written)])
    said = _first(_last_logits(model, closed, tokenizer))
    return thoughts, _Said(said.answers, nats + said.nats)


def _surer(silent: _Said, thinking: _Said) -> np.ndarray:
    """(prompts,) int64, the answers that come by the likelier way."""
    return np.where(thinking.nats < silent.nats, thinking.answers, silent.answers)


def _first(logits: torch.Tensor) -> _Said:
    nats, answers = (-torch.log_softmax(logits, -1)).min(-1)
    return _Said(answers.numpy(), nats.numpy())


@torch.no_grad()
def _last_logits(model: Any, texts: Sequence[np.ndarray], tokenizer: TextTokenizer) -> torch.Tensor:
    """(texts, vocabulary) float32: what a student expects next, were there no thoughts."""
    size = max(map(len, texts))
    input_ids = torch.zeros(len(texts), size, dtype=torch.long)
    for place, text in enumerate(texts):
        input_ids[place, : len(text)] = torch.from_numpy(text)
    last = torch.tensor([len(text) - 1 for text in texts])
    # Padding stands behind, and a causal model looks at what is before.
    logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits.float().cpu()
    found = logits[torch.arange(len(texts)), last][:, : tokenizer.vocab_size].clone()
    found[:, _mark(THINK_OPEN, tokenizer)] = -torch.inf
    return found
