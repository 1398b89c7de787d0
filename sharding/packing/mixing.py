"""Mixing: what of each document goes into the corpus, and the account of it. Pure; used by the pack stage.

    document ──► contaminated? ──► copies, by the weight of its source ──► plain, or with its thoughts

Every choice hangs on the document's id and `pack.seed` alone. What doesn't go in, or goes in more than once, is
counted, so that the tokens in the shards follow exactly from those that were scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sharding.packing import order
from sharding.packing.config import PackConfig

COUNTS = (
    *("documents_contaminated", "source_tokens_contaminated", "thoughts_contaminated"),
    *("documents_left_out", "source_tokens_left_out", "thoughts_left_out"),
    *("document_copies", "source_tokens_copied", "thoughts_copied"),
    *("documents_raw", "thoughts_left_out_of_raw"),
    *("rows_left_out", "rows_left_out_documents"),
    *(f"rows_left_out_tokens_{kind}" for kind in ("padding", "source", "thought", "delimiter")),
)
"""The counts of the pack stage that say what became of documents, thoughts and rows; all are always there."""


@dataclass(frozen=True, slots=True)
class Share:
    """What of a document goes into the corpus.

    Attributes:
        copies: how often it is in; 0 where it is left out.
        raw: it stays plain, without its thoughts.
        why_not: why it is left out.
    """

    copies: int
    raw: bool = False
    why_not: Literal["contaminated", "left_out"] | None = None


def share_of(doc_id: str, source: str, config: PackConfig, *, contaminated: bool) -> Share:
    """What of a document goes into the corpus.

    Args:
        doc_id: the document.
        source: name of its source.
        config: the `pack` section.
        contaminated: it overlaps with a benchmark, and such documents are to be removed.
    """
    if contaminated:
        return Share(0, why_not="contaminated")
    copies = order.copies_of(config.seed, doc_id, config.source_weights.get(source, 1.0))
    if not copies:
        return Share(0, why_not="left_out")
    return Share(copies, raw=order.is_raw(config.seed, doc_id, config.raw_fraction))


def share_counts(share: Share, source_tokens: int, thoughts: int) -> dict[str, int]:
    """What a document adds to the counts.

    Args:
        share: what of it goes in.
        source_tokens: its training tokens.
        thoughts: the thoughts that were kept for it.
    """
    if share.why_not is not None:
        return {
            f"documents_{share.why_not}": 1,
            f"source_tokens_{share.why_not}": source_tokens,
            f"thoughts_{share.why_not}": thoughts,
        }
    more = share.copies - 1
    return {
        "document_copies": more,
        "source_tokens_copied": more * source_tokens,
        "thoughts_copied": 0 if share.raw else more * thoughts,
        "documents_raw": int(share.raw),
        "thoughts_left_out_of_raw": thoughts if share.raw else 0,
    }
