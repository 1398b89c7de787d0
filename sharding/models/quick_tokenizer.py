"""Byte-level BPE many times faster, by `gigatoken` where it is installed: the same ids, or none. Under `tokenizer`.

gigatoken splits text by tables and code of its own. So that its being installed never shows in a corpus, it is held
against `tokenizers` when a tokenizer is loaded, on how characters of all kinds meet, and a character beyond ASCII once
more when it is first seen, between characters of each kind: what Unicode version a library follows decides whether a
new one is a letter. A text with a character that the two take differently is left to `tokenizers`, and so is one with
more new characters than are tried for one text.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from sharding.models.tokenizer_json import byte_symbols

logger = logging.getLogger(__name__)

KINDS = "aZ7 \n.'"
"""A character of each kind that the usual patterns tell apart."""

PROBE_LENGTH = 3

NEW_PER_TEXT = 512
"""So many new characters are tried for one text, which takes 0.3 s and 20 MB; the others when they come again."""

NEW_COUNT_AS = 4096
"""Characters of text that a new one counts as: it is tried in some 40 words, all of which gigatoken keeps."""

RENEWED_AFTER_CHARACTERS = 64 << 20
"""gigatoken 0.10 keeps every word it has seen, some 80 bytes each, for good; so it is made anew after so much text."""


class QuickEncoder:
    """Encodes the texts that it is known to encode as `exact` does.

    Args:
        exact: the tokenizer to agree with.
        spec: its tokenizer.json, byte-level.
        vocab_size: highest token id plus one.

    Raises:
        ImportError: gigatoken is not installed.
        ValueError: it can't read this tokenizer, or tokenizes otherwise.
    """

    def __init__(self, exact: Tokenizer, spec: dict[str, Any], vocab_size: int) -> None:
        self._exact, self._spec, self._vocab_size = exact, spec, vocab_size
        self._lock, self._left = threading.Lock(), RENEWED_AFTER_CHARACTERS
        self._quick: Any = None
        try:
            self._ready()
            wrong = next(self._differences(_probes(spec)), None)
        except RuntimeError as error:
            raise ValueError(f"gigatoken can't read it: {error}") from error
        if wrong is not None:
            raise ValueError(f"gigatoken tokenizes {wrong!r} otherwise than tokenizers")
        self._agreed = {chr(code) for code in range(128)}
        self._refused: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # gigatoken's own part can't be pickled, and where this arrives it may not be installed.
        return quick_encoder, (self._exact, self._spec, self._vocab_size)

    def encode(self, text: str) -> np.ndarray | None:
        """(num_tokens,) uint32 ids of a text that is valid Unicode; None: let `exact` do it."""
        if not text.isascii() and not self._agreed.issuperset(text) and not self._agree(set(text)):
            return None
        self._left -= len(text)
        if self._left < 0:
            self._quick = None  # the old one goes before the new one comes
        ids: np.ndarray = self._ready().encode(text)
        # An id beyond the vocabulary is a byte that the vocabulary lacks.
        return ids if not len(ids) or ids.max() < self._vocab_size else None

    def _ready(self) -> Any:
        if (quick := self._quick) is not None:
            return quick
        with self._lock:
            if self._quick is None:
                import gigatoken

                self._left = RENEWED_AFTER_CHARACTERS
                spec = msgspec.json.encode(_with_all_bytes(self._spec, self._vocab_size))
                self._quick = gigatoken.Tokenizer.from_json(spec)
            return self._quick

    def _agree(self, characters: set[str]) -> bool:
        """Whether all characters are taken alike, as far as is known; of those not seen before some are tried."""
        if not self._refused.isdisjoint(characters):
            return False
        unknown = sorted(characters - self._agreed)
        tried = {
            "".join(f"{before}{new}{behind}" for before in KINDS for behind in KINDS + new): new
            for new in unknown[:NEW_PER_TEXT]
        }
        self._left -= NEW_COUNT_AS * len(tried)
        refused = {tried[text] for text in self._differences(list(tried))}
        self._refused |= refused
        self._agreed.update(set(tried.values()) - refused)
        return not refused and len(unknown) <= NEW_PER_TEXT

    def _differences(self, texts: Sequence[str]) -> Iterator[str]:
        encodings = self._exact.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if self._ready().encode(text).tolist() != encoding.ids:
                yield text


def quick_encoder(exact: Tokenizer, spec: dict[str, Any], vocab_size: int) -> QuickEncoder | None:
    """The quick encoder of a byte-level tokenizer, if there can be one."""
    byte_level = any(step.get("type") == "ByteLevel" for step in _pre_tokenizers(spec))
    # Older files, such as GPT-2's, don't name the type.
    if not byte_level or spec["model"].get("type", "BPE") != "BPE":
        return None
    try:
        return QuickEncoder(exact, spec, vocab_size)
    except ImportError:
        return None
    except ValueError as error:
        logger.info("texts are tokenized by tokenizers alone: %s", error)
        return None


def _probes(spec: dict[str, Any]) -> list[str]:
    """Texts on which the two have to agree: how kinds of characters meet, all of ASCII, and the added tokens."""
    runs = ["".join(run) for run in product(KINDS, repeat=PROBE_LENGTH)]
    symbols = byte_symbols()
    spelled = {piece for piece in spec["model"]["vocab"] if len(piece) == 1 and piece in symbols}
    ascii_ = [chr(byte) for symbol, byte in symbols.items() if symbol in spelled and byte < 128]
    around = [f"a{one} {one}{one}b{one}7{one}" for one in ascii_]
    added = [f"a{token['content']}b {token['content']}" for token in spec["added_tokens"]]
    words = ["internationalization's CamelCase snake_case 3.14159e-10 don't WE'LL\r\n\t\treturn  x;\n\n\n"]
    words += [4 * kind for kind in KINDS] + [300 * kind for kind in KINDS]
    return [*runs, *around, *added, *words]


def _with_all_bytes(spec: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The same with ids beyond the vocabulary for the bytes that it lacks: gigatoken wants all 256."""
    out = copy.copy(spec)
    vocabulary = spec["model"]["vocab"]
    lacking = sorted(set(byte_symbols()).difference(vocabulary))
    out["model"] = {
        **spec["model"],
        "vocab": {**vocabulary, **{symbol: vocab_size + number for number, symbol in enumerate(lacking)}},
    }
    return out


def _pre_tokenizers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = spec.get("pre_tokenizer")
    if found is not None:
        yield from found["pretokenizers"] if found["type"] == "Sequence" else [found]
