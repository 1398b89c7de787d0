"""A tokenizer beside what was made with it, so that an output can be read where its model isn't."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from sharding.errors import MillError
from sharding.models.tokenizer import TextTokenizer
from sharding.storage.files import join, read_bytes, write_bytes, write_json
from sharding.storage.json_files import read_json

TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
MAX_STORED_BYTES = 64 << 20


def store_tokenizer(tokenizer: TextTokenizer, folder: str) -> None:
    """Write a tokenizer into a folder of any store, for `stored_tokenizer` and `load_tokenizer`.

    Raises:
        MillError: the store refused.
    """
    ends = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    write_bytes(join(folder, TOKENIZER_NAME), tokenizer.json)
    write_json(join(folder, TOKENIZER_CONFIG_NAME), {key: token for key, token in ends.items() if token is not None})


@lru_cache(maxsize=16)
def stored_tokenizer(folder: str, name: str, fingerprint: str) -> TextTokenizer:
    """The tokenizer that `store_tokenizer` left in an output, under the name that it had.

    Args:
        fingerprint: of the tokenizer that is wanted.

    Raises:
        MillError: it isn't there, is another one, or is none; anyone may have written it.
    """
    data = read_bytes(join(folder, TOKENIZER_NAME), MAX_STORED_BYTES)
    if hashlib.sha256(data).hexdigest() != fingerprint:
        raise MillError(f"{folder} holds another tokenizer than the one that the documents were scored with")
    ends = read_json(join(folder, TOKENIZER_CONFIG_NAME), dict[str, str], "the end tokens of a tokenizer")
    try:
        return TextTokenizer(data, name=name, bos_token=ends.get("bos_token"), eos_token=ends.get("eos_token"))
    except MillError:
        raise
    except Exception as error:  # what the parser of `tokenizers` makes of a file that is none
        raise MillError(f"{folder} holds no tokenizer: {error}") from error
