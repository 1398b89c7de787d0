"""Which documents share an id or a text: one id for each, and one of several copies. Pure; run by `ReadDocuments`."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from sharding import records
from sharding.hashing import content_id
from sharding.records.types import Document
from sharding.sources.near_copies import NEAR, NearMark, decode_mark

NUMBERED = re.compile(r"~\d+$")
"""How the ids end that tell documents of one id apart."""

DOCUMENT, DROPPED, EARLIER = b"d", b"x", b"e"

EARLIER_SOURCE, EARLIER_RANK = "<earlier>", -1
"""What stands for the source of documents that an earlier delivery has brought, and its place before all others; no
source of a config may have such a name."""


def text_key(document: Document, ranks: Mapping[str, int]) -> tuple[str, bytes]:
    """(hash of the text, where it is): what meets the document's exact copies.

    Args:
        document: any.
        ranks: the place of each source among the sources, by name.
    """
    return content_id(document.text), msgspec.msgpack.encode((ranks[document.source], document.doc_id, document.origin))


def later_copies(group: tuple[str, Iterable[bytes]]) -> Iterator[tuple[str, bytes]]:
    """All documents of one text but the first, as (id, mark for `distinct_documents`).

    The first is that of the source named first, then of the smallest id, then of the smallest origin; one that an
    earlier delivery has brought is before all others, and none of those is a copy.
    """
    # Two passes instead of a sorted list: a text may be there a hundred million times.
    places = group[1]
    first = min(_place(data) for data in places)
    for data in places:
        place = _place(data)
        if place != first and place[0] != EARLIER_RANK:
            rank, doc_id, origin = place
            yield doc_id, DROPPED + msgspec.msgpack.encode((rank, origin, first[0] == EARLIER_RANK))


def copy_counts(copy: tuple[str, bytes], *, drops: bool) -> dict[str, int]:
    """What one of `later_copies` adds to the counts.

    Args:
        copy: (id, mark).
        drops: whether copies are left out.
    """
    *_, is_of_earlier = _mark_decoder.decode(copy[1][1:])
    counts = {"documents_duplicate": 1}
    return (
        counts | ({"duplicates_dropped": 1} if drops else {}) | ({"duplicates_of_earlier": 1} if is_of_earlier else {})
    )


def earlier_member(document: Document) -> tuple[str, bytes]:
    """(id in its source, mark for `distinct_documents`) of a document that an earlier delivery has brought."""
    numbered = NUMBERED.search(document.doc_id)
    number = int(numbered[0][1:]) if numbered else 1
    doc_id = document.doc_id[: numbered.start()] if numbered else document.doc_id
    return doc_id, EARLIER + msgspec.msgpack.encode((number, content_id(document.text)))


_place_decoder = msgspec.msgpack.Decoder(tuple[int, str, str])
_mark_decoder = msgspec.msgpack.Decoder(tuple[int, str, bool])
_earlier_decoder = msgspec.msgpack.Decoder(tuple[int, str])


def _only(members: Iterable[bytes]) -> bytes | None:
    """The only member of a group of one, which nearly all are."""
    first_two = list(itertools.islice(members, 2))
    return first_two[0] if len(first_two) == 1 else None


def _place(data: bytes) -> tuple[int, str, str]:
    return _place_decoder.decode(data)


def distinct_documents(
    group: tuple[str, Iterable[bytes]],
    ranks: Mapping[str, int],
    *,
    drop_near: bool = False,
    counts: Counter[str] | None = None,
) -> Iterator[Document]:
    """Documents that carry one id, without those that are marked as dropped, each with an id of its own.

    The first keeps the id, the others get "~2", "~3", ... A source's own id that looks like that gets "~1" behind it,
    so that no two documents of a run share an id. The order is that of the sources, then of the texts' hashes, then of
    the origins, so the outcome doesn't depend on the order of reading. Numbers that an earlier delivery has given are
    not given again, and a document that it has brought, of the same id and the same text, is left out.

    Args:
        group: the id, and documents and marks in any order.
        ranks: the place of each source among the sources, by name.
        drop_near: whether near-copies go, but for the one that stands for its cluster.
        counts: what is found of near-copies, and of documents that were delivered before, is added to it.
    """
    doc_id, members = group
    only = _only(members)
    if only is not None and only[:1] == DOCUMENT and NUMBERED.search(doc_id) is None:
        yield records.decode(Document, only[1:])
        return
    counts = Counter() if counts is None else counts
    dropped: set[tuple[int, str]] = set()
    near: dict[tuple[int, str], NearMark] = {}
    places: list[tuple[int, str, str]] = []
    last_number, delivered = 0, set[str]()
    # Two passes: only places are held, not the texts.
    for data in members:
        if data[:1] == DROPPED:
            dropped.add(_mark_decoder.decode(data[1:])[:2])
        elif data[:1] == EARLIER:
            number, text = _earlier_decoder.decode(data[1:])
            last_number = max(last_number, number)
            delivered.add(text)
        elif data[:1] == NEAR:
            mark = decode_mark(data[1:])
            near[mark.rank, mark.origin] = mark
        else:
            document = records.decode(Document, data[1:])
            places.append((ranks[document.source], content_id(document.text), document.origin))
    for rank, text, origin in places:
        if text in delivered and (rank, origin) not in dropped:
            counts["documents_delivered_before"] += 1
            dropped.add((rank, origin))
    for place, mark in near.items():
        if place in dropped or mark.role == "same":
            continue  # exact copies count as that
        counts["near_copy_clusters" if mark.role == "first" else "documents_near_copy"] += 1
        if mark.of_earlier:
            counts["near_copies_of_earlier"] += 1
        if drop_near and mark.role == "near":
            counts["near_copies_dropped"] += 1
            dropped.add(place)
    staying = sorted(place for place in places if (place[0], place[2]) not in dropped)
    copy_of = {(rank, origin): copy for copy, (rank, _, origin) in enumerate(staying, last_number + 1)}
    looks_numbered = NUMBERED.search(doc_id) is not None
    for data in members:
        if data[:1] == DOCUMENT:
            document = records.decode(Document, data[1:])
            copy = copy_of.get((ranks[document.source], document.origin))
            if copy is not None:
                numbered = copy > 1 or looks_numbered
                found = near.get((ranks[document.source], document.origin))
                yield msgspec.structs.replace(
                    document,
                    doc_id=f"{doc_id}~{copy}" if numbered else doc_id,
                    cluster="" if found is None else found.cluster,
                )
