"""Text to tokens and back, losslessly, with raw text kept apart from control tokens.

Used by every stage: `score` encodes the source, `augment` builds prompts, `select` encodes traces, `pack` decodes to
check. Two doors: `encode` takes raw text, which is hostile, and can return no control token whatever the text says;
`encode_trusted` takes templates and delimiters, which the mill wrote. Every token stands for a fixed string of bytes
(`decode_bytes` just joins them), so pieces of a document decode to exactly their piece, and spans are sums of lengths.

To make that so, what tokenizers add to text is taken out of them: BOS tokens, a space before the first word, padding
and truncation; Unicode normalisation is skipped, so that text which is not in the tokenizer's normal form gets tokens
for the bytes it has. Text that a vocabulary can't spell is refused (`UnencodableText`), never altered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from sharding.errors import MillError
from sharding.models.quick_tokenizer import QuickEncoder, quick_encoder
from sharding.models.store import resolve_model
from sharding.models.tokenizer_json import METASPACE, byte_table, is_control, metaspace_bytes, plain_spec, trusted_spec
from sharding.models.trainer_encoder import TrainerEncoder
from sharding.records.arrow import token_dtype

_END_OF_TEXT = "<|endoftext|>"
_START_OF_TURN = "<|im_start|>"  # SmolLM2-Instruct calls it its bos token


class UnencodableText(MillError):
    """A text that the tokenizer can't spell.

    Attributes:
        reason: "lone_surrogate" (the text is no valid Unicode) or "not_in_vocabulary" (tokens would lose or alter it).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, str(self))


class TextTokenizer:
    """A lossless view of a tokenizer.json; get one from `load_tokenizer`.

    Attributes:
        name: what it was loaded as, for messages.
        fingerprint: sha256 of tokenizer.json, hex.
        vocab_size: highest token id plus one, added tokens included.
        dtype: uint16 or uint32, the type of all ids returned.
        control_ids: ids of the added tokens ("<|im_end|>", "<think>", ...), special or not. Runs of white space, which
            some vocabularies keep among them, are ordinary text and not in it.
        special_ids: those that decoders leave out of a text unless asked not to.
        json: the bytes of tokenizer.json.
        bos_token, eos_token: the tokens around texts, as the tokenizer's own config has them.
    """

    def __init__(
        self,
        tokenizer_json: bytes,
        *,
        name: str = "tokenizer",
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        """Reads a tokenizer.json.

        Raises:
            MillError: it is no such file, or of a kind whose tokens don't spell their text (such as WordPiece).
        """
        self.name = name
        self.fingerprint = hashlib.sha256(tokenizer_json).hexdigest()
        try:
            spec = json.loads(tokenizer_json)
            trusted, plain = trusted_spec(spec), plain_spec(spec)
        except (ValueError, KeyError, TypeError) as error:
            raise MillError(f"tokenizer {name}: its tokenizer.json can't be read ({error!r})") from error
        self._trusted, self._plain = (Tokenizer.from_buffer(msgspec.json.encode(s)) for s in (trusted, plain))
        added = self._trusted.get_added_tokens_decoder()
        self.control_ids = frozenset(i for i, token in added.items() if is_control(token.content, token.special))
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._added_ids = {token.content: i for i, token in added.items()}
        self._bytes_of = byte_table(spec, self._trusted, name)
        self.vocab_size = len(self._bytes_of)
        self.dtype = token_dtype(self.vocab_size)
        self._byte_lengths = np.fromiter(map(len, self._bytes_of), np.int32, self.vocab_size)
        self._spellings = pa.array(self._bytes_of, pa.large_binary())
        self._is_control = np.zeros(self.vocab_size, bool)
        self._is_control[list(self.control_ids)] = True
        self._metaspace_ids = metaspace_bytes(spec, self._trusted)
        self._plain_spec = plain
        self.json = tokenizer_json
        self.bos_token, self.eos_token = bos_token, eos_token
        self._rewriting = spec.get("normalizer"), spec.get("pre_tokenizer")

    @cached_property
    def _quick(self) -> QuickEncoder | None:
        # Made with the first text: most of what only decodes, or writes delimiters, never has one.
        return None if self._metaspace_ids else quick_encoder(self._plain, self._plain_spec, self.vocab_size)

    @property
    def is_quick(self) -> bool:
        """Whether tokenizing takes a small share of the time of what else is done to a text."""
        return self._quick is not None

    @cached_property
    def trainer(self) -> TrainerEncoder:
        """The same tokenizer with what it adds to texts and rewrites in them: as trainers run it."""
        return TrainerEncoder(self._plain_spec, *self._rewriting, self.dtype)

    @property
    def is_as_trainers(self) -> bool:
        """Whether `encode` gives the ids of `trainer` for every text, since that adds and rewrites nothing."""
        kept = self._plain_spec["normalizer"], self._plain_spec["pre_tokenizer"]
        return self._rewriting == kept and not self._metaspace_ids

    def __repr__(self) -> str:
        return f"TextTokenizer({self.name!r}, vocab_size={self.vocab_size})"

    @cached_property
    def end_of_text_id(self) -> int:
        """The token that separates documents in pretraining: "<|endoftext|>" where it exists, else the eos token.

        A chat model's eos is often its end-of-turn token, hence the preference.

        Raises:
            MillError: the tokenizer has neither.
        """
        for token in (_END_OF_TEXT, self.eos_token):
            if token is not None and token in self._added_ids:
                return self._added_ids[token]
        raise MillError(
            f"tokenizer {self.name}: no {_END_OF_TEXT!r} among its added tokens and no eos_token in its "
            "tokenizer_config.json, so documents can't be separated; add an eos_token there"
        )

    @cached_property
    def start_of_text_id(self) -> int:
        """The token that a document follows in pretraining: the bos token, else the end of the document before.

        A chat model's bos may be its start-of-turn token, after which it expects a role: that one doesn't count.

        Raises:
            MillError: there is neither.
        """
        bos = None if self.bos_token == _START_OF_TURN else self.token_id(self.bos_token or "")
        return self.end_of_text_id if bos is None else bos

    def token_id(self, token: str) -> int | None:
        """The id of an added token such as "<think>" by its exact content, or None."""
        return self._added_ids.get(token)

    def encode(self, text: str) -> np.ndarray:
        """Tokens of raw text: whatever the text says, no control token among them.

        Returns:
            (num_tokens,) `dtype`; `decode` of it is `text`.

        Raises:
            UnencodableText: the text has lone surrogates, or characters the vocabulary can't spell.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` for several texts; on all cores, unless it `is_quick`.

        Raises:
            UnencodableText: for the first text that can't be encoded; encode one by one to set it apart.
        """
        data = [_utf8(text) for text in texts]
        quick = [self._quick.encode(text) if self._quick else None for text in texts]
        others = iter(self._encode_others([text for text, ids in zip(texts, quick, strict=True) if ids is None]))
        return [
            self._checked(next(others) if ids is None else ids, spelled)
            for ids, spelled in zip(quick, data, strict=True)
        ]

    def _encode_others(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, not checked, by `tokenizers`."""
        # Where the vocabulary writes spaces as "▁", a "▁" of the text itself has to go byte by byte.
        pieces = [text.split(METASPACE) if self._metaspace_ids else [text] for text in texts]
        flat = [piece for pieces_of_text in pieces for piece in pieces_of_text]
        ids_of_pieces = (encoding.ids for encoding in self._plain.encode_batch_fast(flat, add_special_tokens=False))
        found = []
        for pieces_of_text in pieces:
            ids = next(ids_of_pieces)
            for _ in pieces_of_text[1:]:
                ids += self._metaspace_ids + next(ids_of_pieces)
            found.append(ids)
        return found

    def encode_for_scoring(self, text: str) -> np.ndarray:
        """`encode`, with spaces in place of characters that the vocabulary can't spell, one per byte of UTF-8.

        The tokens still cover the text's bytes, so scores find their way back to it; `decode` gives another text.

        Raises:
            UnencodableText: the text has lone surrogates, or is refused for more than some characters.
        """
        try:
            return self.encode(text)
        except UnencodableText as error:
            if error.reason == "lone_surrogate":
                raise
            spaces = {ord(char): " " * len(char.encode()) for char in set(text) if not self._spells(char)}
            return self.encode(text.translate(spaces))

    def _spells(self, char: str) -> bool:
        try:
            self.encode(char)
        except UnencodableText:
            return False
        return True

    def encode_trusted(self, text: str) -> np.ndarray:
        """Tokens of a template or a delimiter, its control tokens recognised; nothing is added around it.

        Never give it text from a corpus or a model.

        Returns:
            (num_tokens,) `dtype`.
        """
        return np.array(self._trusted.encode(text, add_special_tokens=False).ids, dtype=self.dtype)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of tokens, control tokens written out; a character that the ids hold only a part of reads U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: np.ndarray | Sequence[int]) -> bytes:
        """The exact UTF-8 bytes of tokens; concatenates as the ids do."""
        spelling = self._spelling(np.asarray(ids, np.uint32))
        return b"" if spelling is None else spelling.to_pybytes()

    def _spelling(self, ids: np.ndarray) -> pa.Buffer | None:
        # Taken by Arrow, in a fifth of the time of joining them here: every token of a corpus comes by.
        return self._spellings.take(pa.array(ids)).buffers()[2]

    def byte_lengths(self, ids: np.ndarray) -> np.ndarray:
        """How many bytes of UTF-8 each token stands for: (num_tokens,) int64, sums to the text's length."""
        return self._byte_lengths[ids].astype(np.int64)

    def byte_ends(self, ids: np.ndarray) -> np.ndarray:
        """Where each token ends in the UTF-8 bytes of the text: (num_tokens,) int64, the cumulative `byte_lengths`."""
        return np.cumsum(self._byte_lengths[ids], dtype=np.int64)

    def _checked(self, ids: list[int] | np.ndarray, data: bytes) -> np.ndarray:
        """The ids as an array, once they are known to spell `data` without control tokens."""
        tokens = np.array(ids, dtype=self.dtype)
        # Byte-level vocabularies may lack bytes, and drop them silently; others normalise or fall back to <unk>.
        spelling = self._spelling(tokens)
        same = spelling is None or (spelling.size == len(data) and spelling.equals(pa.py_buffer(data)))
        if same and bool(data) == bool(len(tokens)) and not self._is_control[tokens].any():
            return tokens
        spelled = self.decode_bytes(tokens)
        at = next((i for i, (a, b) in enumerate(zip(spelled, data, strict=False)) if a != b), len(spelled))
        raise UnencodableText(
            "not_in_vocabulary",
            f"the vocabulary of {self.name} can't spell the text: near byte {at}, {data[max(0, at - 8) : at + 8]!r}",
        )


@lru_cache(maxsize=16)
def load_tokenizer(name: str, revision: str | None = None) -> TextTokenizer:
    """The tokenizer of a model, by folder, fetched name or hub id; loaded once per process.

    Raises:
        MillError: there is no such model, it has no tokenizer.json, or the hub can't be reached.
    """
    where = resolve_model(name)
    path = _model_file(where, "tokenizer.json", revision)
    if path is None:
        raise MillError(
            f"tokenizer {name!r}: no tokenizer.json in {where}; "
            "make one with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    config_path = _model_file(where, "tokenizer_config.json", revision)
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path else {}
    bos, eos = (t.get("content") if isinstance(t, dict) else t for t in map(config.get, ("bos_token", "eos_token")))
    return TextTokenizer(path.read_bytes(), name=name, bos_token=bos, eos_token=eos)


def _model_file(where: str, filename: str, revision: str | None) -> Path | None:
    """A file of a model as a local path, downloaded where `where` is a hub id; None if the model hasn't got it."""
    if Path(where).is_dir():
        path = Path(where) / filename
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    way_out = "name a local folder, a model from `thoughtmill models fetch`, or a public hub id while online"
    try:
        return Path(hf_hub_download(where, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        raise MillError(f"model {where!r} is not here and the Hugging Face hub can't be reached; {way_out}") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise MillError(f"model {where!r} can't be had from the Hugging Face hub ({error}); {way_out}") from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnencodableText(
            "lone_surrogate", f"the text has a lone surrogate at character {error.start}: it is no valid Unicode"
        ) from error
