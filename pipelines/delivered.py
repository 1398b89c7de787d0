"""Deliveries: documents that joined a finished corpus later, and how its last manifest names their shards.

    OUTPUT/MANIFEST.json ─┬─► data/*, index/*                   of the first documents
                          ├─► deliveries/1/data/*, .../index/*  of the first later delivery, an output of its own
                          └─► facts.delivered                   what is whose: counts of the first, digests of others

The joined manifest follows from that of the first documents and those of the deliveries (`joined`), and can be taken
apart again (`apart`): so counts, equations and removals are those of one output at a time.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sharding import hashing
from sharding.errors import MillError
from sharding.storage import manifest
from sharding.storage.manifest import STAGES, Manifest
from sharding.storage.output import Output

_FACT = "delivered"
_INPUT = "delivery "

TOLD = {
    "score": (
        *("documents_in", "documents", "segments", "source_tokens", "quarantined", "duplicates_of_earlier"),
        *("near_copies_of_earlier", "documents_delivered_before"),
    ),
    "augment": ("generations", "thought_tokens"),
    "select": ("candidates", "kept"),
    "pack": ("rows", "tokens_source", "tokens_thought"),
}
"""Stage → its counts that are told of every delivery."""


class First(msgspec.Struct, frozen=True):
    """What the manifest said before anything was delivered to it: its counts, and whether it was a rehearsal."""

    counts: dict[str, int]
    rehearsal: bool


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that has joined.

    Attributes:
        number: from 1.
        digest: of its own last manifest.
        told: some of its counts, such as "score/documents": see `TOLD`.
    """

    number: int
    digest: str
    told: dict[str, int]


class _Delivered(msgspec.Struct, frozen=True):
    first: First
    deliveries: list[Delivery]


@dataclass(frozen=True)
class Corpus:
    """The documents that came together, as an output: the first ones, or those of a delivery.

    Attributes:
        output: its folder.
        number: of the delivery; 0 for the first documents.
        stages: its manifests that are there, the last one as if nothing had joined it.
    """

    output: str
    number: int
    stages: dict[str, Manifest]


def _delivered(packed: Manifest | None) -> _Delivered | None:
    found = None if packed is None else packed.facts.get(_FACT)
    try:
        return None if found is None else msgspec.convert(found, _Delivered)
    except msgspec.ValidationError as error:
        raise MillError(
            f"facts.{_FACT} of the last manifest is not what says which deliveries joined: {error}"
        ) from error


def deliveries_of(packed: Manifest | None) -> list[Delivery]:
    """The deliveries that a corpus's last manifest says have joined it, in order."""
    found = _delivered(packed)
    return [] if found is None else found.deliveries


def joined(own: Manifest, deliveries: Mapping[int, Mapping[str, Manifest]]) -> Manifest:
    """The last manifest of a corpus that deliveries have joined.

    Args:
        own: the last manifest of the first documents.
        deliveries: number → the four manifests.
    """
    files = {family: list(entries) for family, entries in own.files.items()}
    counts, told = Counter(own.counts), []
    rehearsal, inputs = own.rehearsal, dict(own.inputs)
    for number, stages in sorted(deliveries.items()):
        packed = stages["pack"]
        for family, entries in packed.files.items():
            named = (msgspec.structs.replace(e, name=f"deliveries/{number}/{e.name}") for e in entries)
            files.setdefault(family, []).extend(named)
        counts.update(packed.counts)
        rehearsal |= packed.rehearsal
        digest = manifest.digest(packed)
        inputs[f"{_INPUT}{number}"] = digest
        told.append(Delivery(number=number, digest=digest, told=_told(stages)))
    if not told:
        return own
    found = _Delivered(First(dict(own.counts), own.rehearsal), told)
    return msgspec.structs.replace(
        own,
        files=files,
        counts=dict(counts),
        facts=own.facts | {_FACT: msgspec.to_builtins(found)},
        inputs=inputs,
        fingerprint=manifest.fingerprint(own.stage, own.config, inputs),
        rehearsal=rehearsal,
    )


def _told(stages: Mapping[str, Manifest]) -> dict[str, int]:
    return {f"{stage}/{name}": stages[stage].counts.get(name, 0) for stage, names in TOLD.items() for name in names}


def apart(packed: Manifest) -> Manifest:
    """The last manifest of the first documents alone: what `joined` was given."""
    found = _delivered(packed)
    if found is None:
        return packed
    files = {
        family: [entry for entry in entries if not entry.name.startswith("deliveries/")]
        for family, entries in packed.files.items()
    }
    inputs = {name: digest for name, digest in packed.inputs.items() if not name.startswith(_INPUT)}
    return msgspec.structs.replace(
        packed,
        files={family: entries for family, entries in files.items() if entries},
        counts=found.first.counts,
        facts={name: fact for name, fact in packed.facts.items() if name != _FACT},
        inputs=inputs,
        fingerprint=manifest.fingerprint(packed.stage, packed.config, inputs),
        rehearsal=found.first.rehearsal,
    )


def corpora(output: str) -> Iterator[Corpus]:
    """The first documents of an output, and those of each delivery that has joined them; of an output without a last
    manifest, itself alone.

    Raises:
        MillError: a manifest can't be understood, or one of a delivery is missing.
    """
    stages = {stage: found for stage in STAGES if (found := manifest.read(output, stage)) is not None}
    packed = stages.get("pack")
    yield Corpus(output, 0, stages | ({} if packed is None else {"pack": apart(packed)}))
    for delivery in deliveries_of(packed):
        at = Output(output).delivery(delivery.number)
        yield Corpus(at, delivery.number, {stage: manifest.require(at, stage) for stage in STAGES})


def read_stages(output: str) -> dict[str, Manifest | None]:
    """The manifests of an output, None of what hasn't finished, with the counts of all its deliveries added up.

    Files and facts of the stages before the last are those of the first documents.

    Raises:
        MillError: one can't be understood, or one of a delivery is missing.
    """
    stages = {stage: manifest.read(output, stage) for stage in STAGES}
    if not deliveries_of(stages["pack"]):
        return stages
    first, *others = corpora(output)
    for stage in STAGES[:-1]:
        if (made := first.stages.get(stage)) is not None:
            counts = Counter(made.counts)
            for other in others:
                counts.update(other.stages[stage].counts)
            stages[stage] = msgspec.structs.replace(made, counts=dict(counts))
    return stages


def whole_stages(output: str, stages: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """The four manifests, as what a card tells: `read_stages`, with the sources of all deliveries.

    Args:
        stages: those of the output, which need not be written yet.
    """
    told = dict(stages)
    for delivery in deliveries_of(stages.get("pack")):
        at = Output(output).delivery(delivery.number)
        for stage in STAGES[:-1]:
            made, more = told[stage], manifest.require(at, stage)
            counts, config = Counter(made.counts), made.config
            if stage == "score":
                more = _named_apart(more, f"delivery {delivery.number}")
                config = config | {"sources": [*_sources(made), *_sources(more)]}
            counts.update(more.counts)
            told[stage] = msgspec.structs.replace(made, counts=dict(counts), config=config)
    return told


def _sources(scored: Manifest) -> list[dict[str, Any]]:
    return list(scored.config.get("sources") or [scored.config.get("source") or {}])


def _named_apart(scored: Manifest, by: str) -> Manifest:
    """The manifest of a delivery's scores with its sources called so that they are told apart from the first ones."""
    counts = {}
    for name, count in scored.counts.items():
        head, _, rest = name.partition(".")
        source, _, what = rest.rpartition(".")
        counts[f"source.{source}, {by}.{what}" if head == "source" else name] = count
    sources = [one | {"name": f"{one['name']}, {by}" if one.get("name") else by} for one in _sources(scored)]
    return msgspec.structs.replace(scored, counts=counts, config=scored.config | {"sources": sources})


def delivered_inputs(output: str) -> dict[str, str]:
    """What the pack stage of an output is made from besides, where deliveries have joined it."""
    packed = manifest.read(output, "pack", any_format=True)
    return {f"{_INPUT}{delivery.number}": delivery.digest for delivery in deliveries_of(packed)}


def shards_before(packed: Manifest) -> dict[str, int]:
    """By split how many shards a corpus has: the number of the next one."""
    names = [posixpath.basename(entry.name) for entry in packed.files.get("shards", [])]
    return dict(sorted(Counter(name.partition("-")[0] for name in names).items()))


def problems_of_join(output: str, packed: Manifest, parts: Sequence[Corpus]) -> Iterator[str]:
    """Where a joined manifest isn't what follows from those of its parts.

    Args:
        parts: of `corpora`.
    """
    expected = joined(parts[0].stages["pack"], {part.number: part.stages for part in parts[1:]})
    for what in ("files", "counts", "inputs", "facts", "rehearsal"):
        if getattr(expected, what) != getattr(packed, what):
            yield f"its {what} are not those of the first documents and their deliveries together"


def check_joins(output: str, delivered: Manifest) -> None:
    """Refuse a delivery that was made for another state of the corpus.

    Args:
        delivered: the manifest of the delivery's score stage.

    Raises:
        MillError: the corpus has changed since.
    """
    if delivered.inputs.get("delivered") != earlier_digest(output):
        raise MillError(
            f"output: the corpus of {output} has changed since this delivery was begun: delete the delivery's folder "
            "and append it again; its generations are in the ledger"
        )


def earlier_digest(output: str) -> str:
    """What the documents are, that are there before a delivery: of the scores of all that came before."""
    return hashing.fingerprint([manifest.digest(part.stages["score"]) for part in corpora(output)])
