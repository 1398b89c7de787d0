"""What must add up: the counts of each stage, against its own files and the stages before, as data.

A stage raises on an equation that doesn't hold before it publishes its manifest; `verify` reports the same equations
over the manifests of a finished run. A term is a count of the stage itself (`kept`), the rows that it wrote into a
family of its files (`rows/kept`), or a count of an earlier stage (`select/kept`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields

from augment.selection.verdict import SEGMENTS, SEGMENTS_KEPT
from sharding.errors import MillError
from sharding.packing import mixing
from sharding.packing.epochs import count_name
from sharding.packing.layout import LayoutCounts
from sharding.shards.rows import epoch_of, split_of
from sharding.storage.manifest import Manifest

ALWAYS_COUNTED: dict[str, tuple[str, ...]] = {
    "score": (
        *("documents_in", "documents", "documents_duplicate", "duplicates_dropped", "quarantined"),
        *("segments", "source_tokens"),
    ),
    "augment": (
        *("requests", "generations", "found", "generated", "failed"),
        *("empty", "thought_tokens_found", "thought_tokens_now"),
    ),
    "select": (
        *("requested", "candidates", "missing", "kept", "rejected", "thought_tokens", "kept_thought_tokens"),
        *(SEGMENTS, SEGMENTS_KEPT),
    ),
    "pack": (*mixing.COUNTS, *(count.name for count in fields(LayoutCounts))),
}
"""Stage → the counts that its manifest has even where they are 0."""

EQUATIONS: dict[str, tuple[str, ...]] = {
    "score": (
        "documents_in = documents + quarantined + duplicates_dropped + near_copies_dropped + documents_removed"
        " + documents_delivered_before",
        "segments = rows/segments",
        "quarantined = rows/quarantine",
    ),
    "augment": (
        "requests = rows/requests",
        "generations = found + generated + failed",
        "thought_tokens = thought_tokens_found + thought_tokens_now",
    ),
    "select": (
        "requested = candidates + missing",
        "candidates = kept + rejected",
        "kept = rows/kept",
        "rejected = rows/rejected",
        "documents_contaminated = rows/contaminated",
        # Not compared by number: segments of one text share a generation, and its failure.
        "missing = 0 unless augment/failed",
    ),
    "pack": (
        "rows = rows/shards",
        "documents + documents_contaminated + documents_left_out = score/documents",
        "tokens_source = score/source_tokens - source_tokens_contaminated - source_tokens_left_out"
        " + source_tokens_as_trainer_more - source_tokens_as_trainer_fewer"
        " + source_tokens_copied - rows_left_out_tokens_source",
        "thoughts + thoughts_dropped = select/kept - thoughts_contaminated - thoughts_left_out"
        " - thoughts_left_out_of_raw + thoughts_copied",
    ),
}
"""Stage → its equations. One that ends in "unless TERM" is only claimed where that term is 0."""

_TERM = re.compile(r"([+-]?) *([a-z_/0-9]+)")


def unmet(stage: str, manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """The equations of a stage that don't hold, each as a sentence with its numbers.

    Args:
        stage: whose equations.
        manifests: its manifest and those of earlier stages; equations over stages that are not here are left out.
    """
    for equation in EQUATIONS[stage]:
        claim, _, exception = equation.partition(" unless ")
        left, right, excepted = (_terms(side, stage, manifests) for side in (*claim.split(" = "), exception))
        if left is None or right is None or excepted is None or _sum(excepted):
            continue
        if _sum(left) != _sum(right):
            yield f"{_spelled(left)} is not {_spelled(right)}"
    if stage == "pack":
        yield from _unequal_epochs(manifests[stage])


def _unequal_epochs(packed: Manifest) -> Iterator[str]:
    """Epochs that have other numbers of rows or of source tokens than the first: nothing but the traces may differ."""
    first, filled = Counter[str](), Counter[int]()
    for entry in packed.files.get("shards", []):
        if split_of(entry) == "train":
            first.update({"rows": entry.rows, "tokens_source": entry.tokens.get("source", 0)})
    for epoch in range(1, packed.config.get("pack", {}).get("trace_per_epoch", 1)):
        for name, number in first.items():
            found = packed.counts.get(count_name(epoch, name), 0)
            if found != number:
                yield f"{found} {count_name(epoch, name)} is not {number} {name} of train in epoch 0"
    # Of these a trainer takes as many steps; a takedown leaves rows of padding.
    for entry in (*packed.files.get("shards", []), *packed.files.get("epoch_shards", [])):
        if split_of(entry) == "train":
            filled[epoch_of(entry)] += entry.rows - entry.padding_rows
    for epoch, number in sorted(filled.items()):
        if number != filled[0]:
            yield f"{number} rows of epoch {epoch} hold anything, and {filled[0]} of train in epoch 0"


def check(stage: str, manifests: Mapping[str, Manifest]) -> None:
    """Refuse a result that doesn't add up.

    Args:
        stage, manifests: see `unmet`.

    Raises:
        MillError: an equation doesn't hold: a store lost something, an earlier stage's manifest says what its parts
            don't hold, or it is a bug of ours.
    """
    if problems := list(unmet(stage, manifests)):
        raise MillError(
            f"{stage}: the account doesn't add up: {'; '.join(problems)}. `thoughtmill verify` tells whether earlier "
            "stages are what their manifests say; if they are, this is a fault of thoughtmill's"
        )


def _terms(side: str, stage: str, manifests: Mapping[str, Manifest]) -> list[tuple[int, str, int]] | None:
    """(sign, name, number) of each term; None where one is of a stage that is not here."""
    terms = []
    for sign, name in _TERM.findall(side):
        of, _, count = name.rpartition("/")
        if name.isdigit():
            number = int(name)
        elif of == "rows":
            number = sum(entry.rows for entry in manifests[stage].files.get(count, []))
        elif (of or stage) in manifests:
            number = int(manifests[of or stage].counts.get(count, 0))
        else:
            return None
        terms.append((-1 if sign == "-" else 1, name, number))
    return terms


def _sum(terms: list[tuple[int, str, int]]) -> int:
    return sum(sign * number for sign, _, number in terms)


def _spelled(terms: list[tuple[int, str, int]]) -> str:
    """The terms with their numbers; those that are 0 are left out, except the first."""
    words = ""
    for place, (sign, name, number) in enumerate(terms):
        if number or not place:
            operator = "" if not place else " - " if sign < 0 else " + "
            words += f"{operator}{number}" + ("" if name.isdigit() else f" {name}")
    return words
