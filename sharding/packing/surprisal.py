"""The surprisal of each token beside it in the shards (`pack.surprisal`). In the pack stage, after the layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from sharding.errors import RequestError
from sharding.models.tokenizer import TextTokenizer
from sharding.records.rows import Item, TokenType

if TYPE_CHECKING:
    from sharding.packing.config import PackConfig


def with_surprisal(item: Item, surprisal_nats: np.ndarray) -> Item:
    """An item with the surprisal of each of its tokens; NaN of thoughts and delimiters, which nothing scored.

    Args:
        surprisal_nats: (num_tokens,) float16, of the source tokens of the whole document.
    """
    is_source = item.token_type == TokenType.SOURCE
    values = np.full(len(item.input_ids), np.nan, np.float16)
    values[is_source] = surprisal_nats[item.source_start : item.source_start + np.count_nonzero(is_source)]
    return msgspec.structs.replace(item, surprisal=values)


def check_surprisal(config: PackConfig, tokenizer: TextTokenizer, scorer: str) -> None:
    """Whether the score stage keeps what `pack.surprisal` asks for.

    Args:
        scorer: `difficulty.scorer` of the scores.

    Raises:
        RequestError: it doesn't.
    """
    if not config.surprisal:
        return
    if scorer == "none":
        raise RequestError(
            "pack.surprisal: the scorer none gives no token a surprisal: name a scorer that does, or leave it false"
        )
    if config.tokenize == "as_trainer" and not tokenizer.is_as_trainers:
        raise RequestError(
            f"pack.surprisal: the tokens that were scored are not those that {tokenizer.name} gives as_trainer: choose "
            "pack.tokenize: lossless, or leave pack.surprisal false"
        )
