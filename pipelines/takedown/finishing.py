"""The end of a removal: what its journal says is done, again and again, until it is done."""

from __future__ import annotations

from collections.abc import Mapping

from augment.ledger.forgetting import Forgotten, forget
from pipelines import card
from pipelines.delivered import deliveries_of
from pipelines.takedown.staging import Journal, Moves, Staging
from pipelines.tombstones import tombstone
from sharding import storage
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output


def finish(output: str, journal: Journal, lease: Lease) -> Forgotten:
    """Do what a journal says, from the beginning: what was done before a kill is done again, to the same end."""
    at, staging = Output(output), Staging(output, 0)
    storage.remove(at.success, output)
    storage.remove(at.manifest("pack"), output)
    _withdraw_beside(output)
    gone = frozenset(journal.tombstones)
    forgotten = forget(
        journal.ledger, frozenset(journal.request_keys), lambda doc_id: tombstone(doc_id) in gone, journal.renamed
    )
    lease.check()
    for number, moves in journal.deliveries.items():
        of_delivery = at.delivery(number)
        storage.remove(Output(of_delivery).success, of_delivery)
        storage.remove(Output(of_delivery).manifest("pack"), of_delivery)
        _withdraw_beside(of_delivery)
        _put(of_delivery, moves)
        lease.check()
    made = _put(output, Moves(journal.moves, journal.manifests, journal.pilot), packs=False)
    staging.put_file("removed.json", at.tombstones)
    lease.check()
    if "pack" in made:
        _publish(output, made)
    storage.remove(at.removal_journal, output)
    clear(output, journal)
    return forgotten


def _withdraw_beside(output: str) -> None:
    """Remove what tells of an output beside its stages, and is of the corpus as it was."""
    at = Output(output)
    # The report shows documents, provenance names them, and a signature holds no longer.
    for url in (at.report, at.signature, at.public_key, at.provenance_manifest):
        storage.remove(url, output)
    # Passages, and scores that a plan has made of a sample or a run has set aside, hold their text; all are made anew.
    for folder in (at.provenance, at.retrieval, at.sample, at.earlier):
        for name in storage.list_names(folder):
            storage.remove(storage.join(folder, name), output)


def _put(output: str, moves: Moves, *, packs: bool = True) -> dict[str, Manifest]:
    """Put everything into its place that is staged for an output, the last stage's manifest only where it `packs`; the
    manifests."""
    staging = Staging(output, 0)
    made: dict[str, Manifest] = {stage: staging.staged_manifest(stage) for stage in moves.manifests}
    for move in moves.moves:
        staging.put(move, made[move.stage])
    for stage, of_stage in made.items():
        if stage != "pack":
            manifest.write(output, of_stage)
    if moves.pilot:
        staging.put_file("pilot.json", Output(output).pilot)
    if packs and "pack" in made:
        _publish(output, made)
    return made


def _publish(output: str, made: Mapping[str, Manifest]) -> None:
    card.write(output, made)
    manifest.write(output, made["pack"])
    storage.write_bytes(Output(output).success, b"")


def clear(output: str, journal: Journal | None = None) -> None:
    """Remove what a removal has left that came to nothing, or to its end.

    Args:
        journal: of a removal that came to its end; without one, deliveries are those of the manifest.
    """
    numbers = (
        list(journal.deliveries)
        if journal is not None
        else [delivery.number for delivery in deliveries_of(manifest.read(output, "pack"))]
    )
    for folder in (output, *map(Output(output).delivery, numbers)):
        Staging(folder, 0).clear()
