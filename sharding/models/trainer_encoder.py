"""The ids that a trainer's own tokenizer gives for a text, with its normalizer and prefix space. Beside `tokenizer`.

`TextTokenizer.encode` gives ids that spell the text; a tokenizer that normalises, or puts "▁" before the first word,
gives others, and these are what a model knows that was trained with it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer


class TrainerEncoder:
    """A tokenizer.json as transformers runs it, but for control tokens in the text, which are spelled out.

    Args:
        plain: the tokenizer with its control tokens out of reach: `sharding.models.tokenizer_json.plain_spec`.
        normalizer, pre_tokenizer: those of the tokenizer.json as it is.
        dtype: of the ids.
    """

    def __init__(self, plain: dict[str, Any], normalizer: Any, pre_tokenizer: Any, dtype: np.dtype) -> None:
        spec = dict(plain, normalizer=normalizer, pre_tokenizer=pre_tokenizer)
        self._tokenizer = Tokenizer.from_buffer(msgspec.json.encode(spec))
        self._dtype = dtype

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text, without what a template adds around it, such as a BOS.

        Returns:
            ids: (num_tokens,). starts: (num_tokens,) int64, the character of the text that each token begins with;
            never falling.
        """
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        starts = np.array([start for start, _ in encoded.offsets], np.int64)
        return np.array(encoded.ids, self._dtype), np.maximum.accumulate(starts) if len(starts) else starts
