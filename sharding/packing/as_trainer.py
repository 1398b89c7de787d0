"""The ids of documents as their trainer would make them, what is promised of them, and whether it can be kept.

`pack.tokenize` in the config is one of

    lossless     the tokens of a document spell its text byte for byte: what was scored
    as_trainer   the source tokens of a document, put together, are those that AutoTokenizer gives for its text, with
                 or without thoughts; the tokens of each thought are those that it gives for the thought's text alone

A thought stands at the end of the token that its segment ends in. A text that names a control token ("<|im_end|>") gets
none under either: it is spelled out, as AutoTokenizer does with `split_special_tokens=True`.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Literal

import msgspec
import numpy as np

from sharding.beam.part_join import JoinedDocument
from sharding.errors import RequestError
from sharding.models.store import resolve_model
from sharding.models.tokenizer import TextTokenizer
from sharding.records.types import Candidate

logger = logging.getLogger(__name__)

Tokenize = Literal["lossless", "as_trainer"]

PROBES = (
    "The first word.",
    " \u2581The",
    "  two spaces,\n\n\ta tab and 12345 digits",
    "e\u0301 \ufb01 \u00c5 \u212b",  # composed, decomposed, a ligature: what normalizers change
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \U0001f680",
    "Don't; it's {x: 1}",
)
"""Texts by which tokenizers are told apart."""


def as_trainer(document: JoinedDocument, tokenizer: TextTokenizer) -> JoinedDocument:
    """A document and its kept thoughts in the trainer's own ids, from those that were scored.

    Args:
        document: its "kept" thoughts beside it.
        tokenizer: of both.
    """
    if tokenizer.is_as_trainers:
        return document
    scored = document.scored
    ids, starts, chars = _encoded(scored.input_ids, tokenizer)
    segment_starts = np.searchsorted(starts, chars[scored.segment_starts])
    kept = [
        _thought(thought, scored.segment_starts, segment_starts, starts, chars, tokenizer)
        for thought in document.beside["kept"]
    ]
    return JoinedDocument(
        msgspec.structs.replace(scored, input_ids=ids, segment_starts=segment_starts.astype(np.int64)),
        {**document.beside, "kept": kept},
    )


def _encoded(input_ids: np.ndarray, tokenizer: TextTokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The trainer's ids of tokens' text; the character each begins with; and how many stand before each old token."""
    data = np.frombuffer(tokenizer.decode_bytes(input_ids), np.uint8)
    ids, starts = tokenizer.trainer.encode(data.tobytes().decode())
    characters = np.concatenate(([0], np.cumsum((data & 0xC0) != 0x80, dtype=np.int64)))
    return ids, starts, characters[np.concatenate(([0], tokenizer.byte_ends(input_ids)))]


def _thought(
    thought: Candidate,
    scored_starts: np.ndarray,
    segment_starts: np.ndarray,
    starts: np.ndarray,
    chars: np.ndarray,
    tokenizer: TextTokenizer,
) -> Candidate:
    ids, *_ = _encoded(thought.input_ids, tokenizer)
    segment = thought.segment_index
    if segment >= len(scored_starts):  # which the layout says better
        return thought
    behind = chars[min(int(scored_starts[segment]) + thought.shown_tokens, len(chars) - 1)]
    shown = int(np.searchsorted(starts, behind)) - int(segment_starts[segment])
    return msgspec.structs.replace(thought, input_ids=ids, shown_tokens=shown)


def difference_counts(before: int, after: int) -> dict[str, int]:
    """What a document adds to the counts whose source tokens the trainer's tokenizer makes more or fewer."""
    return {
        "source_tokens_as_trainer_more": max(0, after - before),
        "source_tokens_as_trainer_fewer": max(0, before - after),
    }


def promise(tokenize: Tokenize, tokenizer: TextTokenizer) -> str:
    """What the ids of a corpus are, in a sentence for its card."""
    if tokenize == "as_trainer":
        return (
            "`as_trainer`: the source tokens of a document, put together, are those that the tokenizer gives for its "
            "text, and a thought's those for the thought; what it normalises is not as in the source"
        )
    said = "`lossless`: the tokens of a document spell its text byte for byte"
    if (probe := _first_difference(tokenizer)) is None:
        return said
    return f"{said}; the tokenizer itself gives other ids for some texts, such as `{probe!r}`"


def check_tokenize(tokenize: Tokenize, tokenizer: TextTokenizer) -> None:
    """Whether what `as_trainer` promises can be kept, tried on some texts with transformers itself.

    Raises:
        RequestError: AutoTokenizer gives other ids than the tokenizer.json.
    """
    if tokenize != "as_trainer":
        return
    if importlib.util.find_spec("transformers") is None:
        logger.warning("pack.tokenize: as_trainer goes by tokenizer.json alone: transformers isn't installed here")
        return
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(resolve_model(tokenizer.name))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"pack.tokenize: as_trainer promises the ids of AutoTokenizer, which can't open {tokenizer.name}: {error}; "
            "mend the folder, or choose lossless"
        ) from error
    for probe in PROBES:
        expected = theirs(probe, add_special_tokens=False)["input_ids"]
        found = tokenizer.trainer.encode(probe)[0].tolist()
        if found != expected:
            raise RequestError(
                f"pack.tokenize: as_trainer promises the ids of AutoTokenizer, and for {probe!r} that gives {expected} "
                f"where tokenizer.json of {tokenizer.name} gives {found}: save it anew with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder), or choose lossless"
            )


def _first_difference(tokenizer: TextTokenizer) -> str | None:
    """The first probe for which the trainer's ids are not those that spell it."""
    for probe in () if tokenizer.is_as_trainers else PROBES:
        ids, _ = tokenizer.trainer.encode(probe)
        if tokenizer.decode(ids) != probe or not np.array_equal(ids, tokenizer.encode_for_scoring(probe)):
            return probe
    return None
