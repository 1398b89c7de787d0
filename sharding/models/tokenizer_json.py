"""Inside a tokenizer.json: what `models.tokenizer` takes out of it, and the bytes that each of its tokens spells.

Works on the parsed JSON, because the tokenizers library can't change a vocabulary once loaded.
"""

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from sharding.errors import MillError

_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
_PREFIXERS = {"Prepend"}
METASPACE = "\u2581"


def is_control(content: str, special: bool) -> bool:
    """Whether an added token steers a model; runs of white space are added tokens too, and ordinary text."""
    return special or not content.replace(METASPACE, " ").isspace()


def trusted_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without what it adds around the text or rewrites in it."""
    out = dict(spec, truncation=None, padding=None, post_processor=None)
    out["normalizer"] = _without(spec.get("normalizer"), "normalizers", _UNICODE_FORMS | _PREFIXERS)
    out["pre_tokenizer"] = _without_prefix(spec.get("pre_tokenizer"))
    return out


def plain_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The same with control tokens out of reach: neither matched as added tokens nor through the vocabulary.

    Vocabularies often hold their control tokens too, and Unigram, WordLevel and `ignore_merges` would match them
    there. Ids follow from the order of the entries, so these are renamed to what no text is likely to hold (and
    `encode` checks that none came out).
    """
    out = trusted_spec(spec)
    control = [token["content"] for token in spec["added_tokens"] if is_control(token["content"], token["special"])]
    renamed = {content: f"\ufdd0control {number}\ufdd1" for number, content in enumerate(control)}
    out["added_tokens"] = [dict(t, content=renamed.get(t["content"], t["content"])) for t in spec["added_tokens"]]
    model = dict(spec["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed.get(piece, piece): index for piece, index in model["vocab"].items()}
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, renamed)]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    out["model"] = model
    return out


def _touches(merge: str | list[str], control: dict[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in control or right in control or left + right in control


def _without(part: dict[str, Any] | None, children: str, kinds: set[str]) -> dict[str, Any] | None:
    """A normalizer without the steps of some kinds."""
    if part is None or part["type"] in kinds:
        return None
    if part["type"] != "Sequence":
        return part
    kept = [_without(child, children, kinds) for child in part[children]]
    return dict(part, **{children: [child for child in kept if child is not None]})


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A pre-tokenizer that puts no space before the first word."""
    if part is None:
        return None
    if part["type"] == "Sequence":
        return dict(part, pretokenizers=[_without_prefix(child) for child in part["pretokenizers"]])
    if part["type"] == "Metaspace":
        return {key: value for key, value in part.items() if key != "add_prefix_space"} | {"prepend_scheme": "never"}
    return dict(part, add_prefix_space=False) if "add_prefix_space" in part else part


# --- the bytes of each token ------------------------------------------------------------------------------------------


def byte_table(spec: dict[str, Any], tokenizer: Tokenizer, name: str) -> list[bytes]:
    """The bytes that each token id stands for; unused ids stand for none.

    Args:
        spec: a tokenizer.json.
        tokenizer: made from it; knows the ids of the added tokens.
        name: for messages.

    Raises:
        MillError: the decoder is of a kind that doesn't just join what the tokens spell.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    kinds = {step["type"] for step in _steps(spec.get("decoder"))}
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    spaced = bool(kinds & {"Replace", "Metaspace"})
    if "ByteLevel" in kinds:
        symbols = byte_symbols()
        in_latin_1 = {ord(symbol): byte for symbol, byte in symbols.items()}
        for piece, index in vocabulary.items():
            known = symbols.keys() >= set(piece)
            table[index] = piece.translate(in_latin_1).encode("latin-1") if known else piece.encode()
    elif kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and kinds:
        for piece, index in vocabulary.items():
            table[index] = (piece.replace(METASPACE, " ") if spaced else piece).encode()
        if "ByteFallback" in kinds:
            for byte in range(256):
                if (index := vocabulary.get(f"<0x{byte:02X}>", -1)) >= 0:
                    table[index] = bytes([byte])
    else:
        found = ", ".join(sorted(kinds)) or "none"
        raise MillError(
            f"tokenizer {name}: its tokens don't spell their text exactly (decoder: {found}); "
            "use a byte-level or a byte-fallback tokenizer, such as those of GPT, Llama, Qwen, Gemma or SmolLM"
        )
    for index, token in tokenizer.get_added_tokens_decoder().items():
        as_text = spaced and not is_control(token.content, token.special)
        table[index] = (token.content.replace(METASPACE, " ") if as_text else token.content).encode()
    return table


def metaspace_bytes(spec: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    """The byte tokens that spell "▁" where "▁" in the vocabulary means a space; empty for other tokenizers."""
    if {step["type"] for step in _steps(spec.get("decoder"))}.isdisjoint({"Replace", "Metaspace"}):
        return []
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary.get(f"<0x{byte:02X}>", -1) for byte in METASPACE.encode()]
    return ids if min(ids) >= 0 else []


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def byte_symbols() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies.

    GPT-2's scheme: bytes that print in Latin-1 stand for themselves, the others follow from U+0100 on in order.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
