"""Deliveries that were begun: what is to be finished first, and what can't be touched beneath those that joined."""

from __future__ import annotations

import posixpath

from pipelines.delivered import deliveries_of
from sharding import storage
from sharding.errors import RequestError
from sharding.storage import manifest
from sharding.storage.output import Output

RECORD_NAME = "DELIVERY.json"
"""In the folder of a delivery, from its beginning: what was delivered."""

TOLD_NAME = "JOINED"
"""In the folder of a delivery, once all that tells of the corpus tells of it too."""


def pending(output: str) -> int | None:
    """The number of a delivery that was begun and has not joined; None where there is none."""
    there = _begun(output)
    done = {delivery.number for delivery in deliveries_of(manifest.read(output, "pack", any_format=True))}
    return min(there - done, default=None)


def untold(output: str) -> bool:
    """Whether the card and the like don't tell of a delivery yet: a command was killed behind its one write."""
    numbers = [delivery.number for delivery in deliveries_of(manifest.read(output, "pack"))]
    return not all(storage.exists(storage.join(Output(output).delivery(number), TOLD_NAME)) for number in numbers)


def _begun(output: str) -> set[int]:
    """The deliveries that there is a folder of; an empty one is left where a delivery brought nothing.

    A listing may be late: those that have joined, and the one that would be next, are asked for by name.
    """
    at = Output(output)
    numbers = {int(name) for name in storage.list_names(at.deliveries) if name.isdecimal()}
    numbers |= {delivery.number for delivery in deliveries_of(manifest.read(output, "pack", any_format=True))}
    numbers.add(1 + max(numbers, default=0))
    return {number for number in numbers if storage.exists(storage.join(at.delivery(number), RECORD_NAME))}


def refuse_pending(output: str) -> None:
    """Refuse to touch an output whose last delivery is to be finished.

    Raises:
        RequestError: there is one.
    """
    if (number := pending(output)) is not None:
        raise RequestError(
            f"output: delivery {number} to {output} was interrupted: the same `thoughtmill append` finishes it; or "
            f"delete {Output(output).delivery(number)}, and nothing of it has joined the corpus"
        )


def refuse_delivered(output: str) -> None:
    """Refuse to make a stage again of a corpus that deliveries have joined, or of one of these.

    Raises:
        RequestError: that would leave the corpus without them.
    """
    at = Output(output)
    if _begun(output):
        raise RequestError(
            f"output: later deliveries of documents are in {output}, and its stages can't be made again beneath "
            f"them: name another output; or delete {at.deliveries}, make the stages again with --force, and append the "
            "deliveries again (their generations are in the ledger and are not bought twice)"
        )
    refuse_joined(output)


def refuse_joined(output: str) -> None:
    """Refuse to change an output that has joined the corpus of another.

    Raises:
        RequestError: it has.
    """
    folder, name = posixpath.split(output.rstrip("/"))
    if posixpath.basename(folder) != "deliveries" or not name.isdecimal():
        return
    of = posixpath.dirname(folder)
    if int(name) in {delivery.number for delivery in deliveries_of(manifest.read(of, "pack", any_format=True))}:
        raise RequestError(f"output: {output} has joined the corpus of {of} and can't be changed beneath it: name {of}")
