"""Which documents are near-copies of each other, whatever the order of reading. Pure; run by `FindNearCopies`.

    words ─► signature ─► bands ─► documents that share one, compared ─► links ─► clusters ─► marks
             (MinHash)    16 or 32 numbers, by GroupByKey               stars, 6 rounds      for distinct_documents

Two documents are linked where their estimated resemblance (`sharding.minhash`) reaches `similarity`. Those that share a
band are not compared two by two: the first of them, in the order of sources, ids and places, is compared with all, then
the first of those that aren't like it, and so on. A cluster is what links join, so its ends may be unlike each other,
and its first document stands for it.

Bounds. Of more than `MAX_COMPARED` documents in a band all are compared with the first alone. Links become clusters in
`ROUNDS` rounds of large and small stars (Kiveris et al. 2014, "Connected Components in MapReduce and Beyond"); each
halves the length of a chain, so that chains of 64 links are settled; what isn't is counted as `near_copies_unsettled`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from itertools import islice
from typing import Literal

import msgspec
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding import minhash
from sharding.config import STRICT
from sharding.hashing import content_id
from sharding.records.types import Document

NEAR = b"n"
"""Begins a mark for `distinct_documents`: `NearMark`."""

ROUNDS = 6
MAX_COMPARED = 10_000
MAX_FIRSTS = 100
"""So many documents of a band are compared with the others of it."""

_SKETCH_BYTES = minhash.NUM_PERMUTATIONS
_CHANCE = 1 / 256
"""Two numbers that differ have one low byte in so many cases."""

_STEEP = 0.8
"""From this similarity on bands of 8 numbers find enough; below it they have 4."""

Words = Callable[[str], Sequence[str]]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NearCopiesConfig:
    """What becomes of documents that are nearly the same."""

    action: Literal["keep", "mark", "drop"] = Field(
        default="keep",
        description="keep: they are not looked for; mark: they are counted, and go into one split; drop: of each "
        "cluster the first document stays (needs duplicates: drop).",
    )
    similarity: float = Field(
        default=0.8,
        ge=0.5,
        le=1,
        description="Two documents are near-copies from this share on of the runs of five words in either that are in "
        "both.",
    )


@plain_dataclass(frozen=True)
class NearCopies:
    """How near-copies are looked for.

    Attributes:
        config: the `near_copies` section.
        words: takes a text apart.
    """

    config: NearCopiesConfig
    words: Words

    @property
    def num_bands(self) -> int:
        """Bands of a signature: 32 find near all pairs of 0.5, 16 those of 0.8 in half the time."""
        return 16 if self.config.similarity >= _STEEP else 32


class NearMark(msgspec.Struct, frozen=True, array_like=True):
    """What `distinct_documents` is told of a document in a cluster.

    Attributes:
        rank, origin: the document; see `text_key`.
        cluster: hash of the text of the document that stands for the cluster, or what that one's own split was drawn
            by where an earlier delivery has brought it; what the split is drawn by.
        role: "first" where it stands for the cluster, "near" where its text isn't the first's; "same" where it is, and
            of the first of a cluster in which all are exact copies.
        of_earlier: the document that stands for the cluster was brought by an earlier delivery.
    """

    rank: int
    origin: str
    cluster: str
    role: Literal["first", "near", "same"]
    of_earlier: bool = False


class _Node(msgspec.Struct, frozen=True, array_like=True):
    """A document among links."""

    rank: int
    doc_id: str
    origin: str
    text: str
    cluster: str = ""

    @property
    def order(self) -> tuple[int, str, str]:
        return self.rank, self.doc_id, self.origin


_node_decoder = msgspec.msgpack.Decoder(_Node)
_mark_decoder = msgspec.msgpack.Decoder(NearMark)


def decode_mark(data: bytes) -> NearMark:
    """The mark, without the byte that it begins with."""
    return _mark_decoder.decode(data)


def banded(document: Document, ranks: Mapping[str, int], near: NearCopies) -> Iterator[tuple[str, bytes]]:
    """(band, sketch and document) of each band of a document; none of one without words.

    The sketch has the low byte of each number of the signature, as b-bit MinHash does (Li and König 2010).
    """
    words = near.words(document.text)
    if not words:
        return
    signature = minhash.signature(words)
    sketch = signature.astype(np.uint8).tobytes()
    node = _Node(ranks[document.source], document.doc_id, document.origin, content_id(document.text), document.cluster)
    member = sketch + msgspec.msgpack.encode(node)
    for band in minhash.bands(signature, near.num_bands):
        yield f"{band:016x}", member


def linked(group: tuple[str, Iterable[bytes]], similarity: float) -> Iterator[tuple[str, bytes]]:
    """Links (document, one before it) among the documents that share a band."""
    few = list(islice(group[1], MAX_COMPARED + 1))
    if len(few) < 2:
        return
    if len(few) > MAX_COMPARED:
        first = min(group[1], key=lambda member: _order(member[_SKETCH_BYTES:]))
        for member in group[1]:
            if member != first and _resemblance(_sketches([member]), _sketches([first])[0])[0] >= similarity:
                yield _key(member[_SKETCH_BYTES:]), first[_SKETCH_BYTES:]
        return
    few.sort(key=lambda member: _order(member[_SKETCH_BYTES:]))
    sketches, left = _sketches(few), np.arange(len(few))
    for _ in range(MAX_FIRSTS):
        if len(left) < 2:
            return
        at, left = left[0], left[1:]
        alike = _resemblance(sketches[left], sketches[at]) >= similarity
        for index in left[alike].tolist():
            yield _key(few[index][_SKETCH_BYTES:]), few[at][_SKETCH_BYTES:]
        left = left[~alike]


def both_ways(link: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """A link as either of its documents sees it."""
    yield link
    yield _key(link[1]), _data(link[0])


def large_star(group: tuple[str, Iterable[bytes]]) -> Iterator[tuple[str, bytes]]:
    """A document's later neighbours, linked to the first of it and its neighbours."""
    own, neighbours = _data(group[0]), set(group[1])
    first = min((own, *neighbours), key=_order)
    for other in neighbours:
        if _order(other) > _order(own):
            yield _key(other), first


def small_star(group: tuple[str, Iterable[bytes]]) -> Iterator[tuple[str, bytes]]:
    """A document and its earlier neighbours, linked to the first of them."""
    earlier = set(group[1])
    first = min(earlier, key=_order)
    for other in (_data(group[0]), *earlier):
        if other != first:
            yield _key(other), first


def settled(group: tuple[str, Iterable[bytes]]) -> Iterator[tuple[str, bytes] | dict[str, int]]:
    """From a document and its neighbours to its mark, as (id, mark); and what isn't settled, as a count.

    In a cluster that is settled every document but the first has one neighbour, the first. Documents of an earlier
    delivery get no mark: what they are is settled.
    """
    own = _node_decoder.decode(_data(group[0]))
    if own.rank < 0:
        return
    neighbours = [_node_decoder.decode(data) for data in set(group[1])]
    first = min((own, *neighbours), key=lambda node: node.order)
    if first is not own and len(neighbours) > 1:
        yield {"near_copies_unsettled": 1}
    if first is own:
        role: Literal["first", "near", "same"] = "first" if any(n.text != own.text for n in neighbours) else "same"
    else:
        role = "near" if own.text != first.text else "same"
    mark = NearMark(own.rank, own.origin, first.cluster or first.text, role, first.rank < 0)
    yield own.doc_id, NEAR + msgspec.msgpack.encode(mark)


def _sketches(members: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(m[:_SKETCH_BYTES] for m in members), np.uint8).reshape(-1, _SKETCH_BYTES)


def _resemblance(sketches: np.ndarray, one: np.ndarray) -> np.ndarray:
    """(documents,) float64: the estimated resemblance of each to one of them."""
    return ((sketches == one).mean(axis=1) - _CHANCE) / (1 - _CHANCE)


def _order(node: bytes) -> tuple[int, str, str]:
    return _node_decoder.decode(node).order


def _key(node: bytes) -> str:
    return node.decode("latin-1")  # keys are texts; any bytes are one


def _data(key: str) -> bytes:
    return key.encode("latin-1")
