"""The removal itself: look, prepare, commit, finish. What is counted where, and in which order things happen."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import msgspec

from augment.ledger.forgetting import Forgotten, forget
from pipelines import accounts, card
from pipelines.takedown import parts, shards
from pipelines.takedown.ids import Wanted
from pipelines.takedown.settling import chained, settle_left_out, settled
from pipelines.takedown.staging import Journal, Stage, Staging
from pipelines.tombstones import Removal, Tombstones, read_tombstones, tombstone
from pipelines.watch.files import read_plan
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.config import config_of, layout_of
from sharding.packing.laying_out import DocumentLayout, encode_delimiters
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.manifest import STAGES, Manifest
from sharding.storage.output import Output

_SHOWN = 5


@dataclass(kw_only=True)
class Removed:
    """What a removal did.

    Attributes:
        documents: how many went, those in quarantine included.
        already: ids that an earlier removal had taken.
        unknown: ids that are nowhere in the output.
        files: how many files of the stages took the place of others, or went.
        shards: how many of them are shards.
        ledger: what left the ledger.
        finished: an earlier removal was found interrupted, and finished first.
    """

    documents: int = 0
    already: int = 0
    unknown: list[str] = field(default_factory=list)
    files: int = 0
    shards: int = 0
    ledger: Forgotten | None = None
    finished: bool = False


def remove(output: str, wanted: Wanted | None, *, missing_ok: bool = False, ledger_url: str | None = None) -> Removed:
    """Take documents out of an output for good: from every stage, its ledger and its report; and finish what was begun.

    Args:
        output: the run's output folder.
        wanted: the documents; None: only finish a removal that was interrupted.
        missing_ok: it is no error that none of them is there; those that are not are left out of later runs all the
            same.
        ledger_url: where the generations are, if that is not in the output.

    Raises:
        RequestError: the ledger is elsewhere and not named, there is nothing to do, none of the documents is there,
            all of them would go, the output borrows its scores or has arms, or a run is at work on it.
        MillError: a file is damaged, the store refused, or what remains doesn't add up (nothing was touched then).
    """
    at = Output(output)
    at.check_links()
    with Lease(output, "remove") as lease:
        staging = Staging(output, 0)
        done = Removed()
        if (left := staging.journal()) is not None:
            _ledger_of(output, left.ledger, ledger_url)
            done.finished = True
            done.ledger = finish(output, left, lease)
            done.documents, done.files = left.documents, len(left.moves)
        staging.clear()
        if wanted is None:
            if left is None:
                raise RequestError(f"remove: --ids names no documents, and no removal of {output} is to be finished")
            return done
        try:
            prepared = _prepare(output, wanted, done, missing_ok=missing_ok, ledger_url=ledger_url)
        except MillError:
            staging.clear()  # nothing was touched
            raise
        if prepared is not None:
            lease.check()
            done.ledger = finish(output, prepared, lease)
            done.documents += prepared.documents
            done.files += len(prepared.moves)
            done.shards = sum(move.name.startswith("data/") for move in prepared.moves)
    return done


def _prepare(output: str, wanted: Wanted, done: Removed, *, missing_ok: bool, ledger_url: str | None) -> Journal | None:
    """Everything that is to be done, committed; None where an earlier removal has done it."""
    stages = {stage: found for stage in STAGES if (found := manifest.read(output, stage)) is not None}
    _refuse(output, stages)
    before = read_tombstones(output)
    gone_before = frozenset(before.ids)
    ids = wanted.ids
    done.already = sum(tombstone(doc_id) in gone_before for doc_id in ids)
    packed = stages.get("pack")
    layout = _layout(packed) if packed is not None else None
    staging = Staging(output, int((packed or stages["score"]).facts["vocab_size"]))
    gone = parts.look(output, stages, ids, layout)
    if len(gone.found) == stages["score"].counts["documents"]:
        raise RequestError(f"--ids: all documents of {output} would go: delete the output and its ledger instead")
    made = {stage: parts.rebuild(output, stages[stage], gone, ids, staging) for stage in STAGES[:-1] if stage in stages}
    going = gone.found | gone.quarantined
    done.unknown = sorted(doc_id for doc_id in ids - going if tombstone(doc_id) not in gone_before)
    if not going and not done.unknown:
        return None
    if not going and not missing_ok:
        shown = ", ".join(map(repr, done.unknown[:_SHOWN]))
        raise RequestError(
            f"--ids: none of {len(ids):,} documents is in {output} (such as {shown}): look for typing errors "
            "(`thoughtmill show` tells close ids), or add --missing-ok, and later runs leave them out"
        )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stones = Tombstones(
        ids=sorted(gone_before | {tombstone(doc_id) for doc_id in ids}),
        removals=[*before.removals, Removal(now, len(going))] if going else before.removals,
    )
    if packed is not None and layout is not None:
        items = Counter[str]()
        made["pack"] = shards.rebuild_shards(output, packed, ids, layout.config, staging, items)
        settle_left_out(gone, items)
    made = chained({stage: settled(of_stage, gone, stones) for stage, of_stage in made.items()}, stones)
    for stage, of_stage in made.items():
        accounts.check(stage, {name: made[name] for name in STAGES[: STAGES.index(stage) + 1] if name in made})
        staging.stage_manifest(of_stage)
    staging.stage_json("removed.json", msgspec.to_builtins(stones))
    journal = Journal(
        at=now,
        moves=staging.moves,
        manifests=[stage for stage in get_args(Stage) if stage in made],
        documents=len(going),
        tombstones=[tombstone(doc_id) for doc_id in ids],
        ledger=_ledger_of(output, (read_plan(output) or {}).get("ledger"), ledger_url),
        request_keys=sorted(gone.request_keys),
        renamed=parts.other_askers(output, stages, ids, gone.request_keys),
        pilot=_stage_pilot(output, ids, staging),
    )
    staging.commit(journal)
    return journal


def _ledger_of(output: str, told: str | None, named: str | None) -> str:
    """The ledger that rows leave: the output's own, or the one that the user names.

    Raises:
        RequestError: a file of the output says that it is elsewhere: others may live on that one.
    """
    own = Output(output).ledger
    if named is None and told is not None and not _is_one_place(told, own):
        raise RequestError(
            f"--ledger: the generations of {output} are not in it, but in {told}, which other outputs may use: add "
            f"--ledger {told} to have those of the documents removed there, or another folder"
        )
    return named or own


def _is_one_place(url: str, other: str) -> bool:
    (store, path), (other_store, other_path) = map(storage.filesystem, (url, other))
    return store.protocol == other_store.protocol and path.rstrip("/") == other_path.rstrip("/")


def _refuse(output: str, stages: Mapping[str, Manifest]) -> None:
    if "score" not in stages:
        raise RequestError(f"output: {output} holds no documents: its score stage hasn't finished")
    for made in stages.values():
        if made.folder:
            raise RequestError(
                f"output: the {made.stage} stage of {output} is that of {manifest.files_url(output, made)}: remove the "
                "documents there, and make this output again from it (--replace)"
            )
    if arms := [name for name in storage.list_names(storage.join(output, "arms")) if "." not in name]:
        raise RequestError(
            f"output: {output} has control arms ({', '.join(arms[:_SHOWN])}), corpora of their own that hold the "
            f"documents too: delete {storage.join(output, 'arms')} and make them again afterwards; their generations "
            "stay in the ledger"
        )


def _layout(packed: Manifest) -> DocumentLayout:
    config, tokenizer = config_of(packed), load_tokenizer(packed.config["tokenizer"])
    if tokenizer.fingerprint != packed.facts["tokenizer_fingerprint"]:
        raise MillError(f"tokenizer: {tokenizer.name} is not the one that the shards were packed with")
    return DocumentLayout(config, layout_of(packed), tokenizer, encode_delimiters(config, tokenizer))


def _stage_pilot(output: str, ids: frozenset[str], staging: Staging) -> bool:
    """Prepare a pilot.json without the segments of the documents; whether it held any."""
    url = Output(output).pilot
    if not storage.exists(url):
        return False
    pilot = json.loads(storage.read_bytes(url))
    held = False
    for name, tier in pilot.get("tiers", {}).items():
        segments = tier.get("segment") or []
        stay = [place for place, segment in enumerate(segments) if segment.rpartition("#")[0] not in ids]
        if len(stay) < len(segments):
            held = True
            pilot["tiers"][name] = {
                column: [values[place] for place in stay] if values else values for column, values in tier.items()
            }
    if held:
        staging.stage_json("pilot.json", pilot)
    return held


def finish(output: str, journal: Journal, lease: Lease) -> Forgotten:
    """Do what a journal says, from the beginning: what was done before a kill is done again, to the same end."""
    at, staging = Output(output), Staging(output, 0)
    storage.remove(at.success, output)
    storage.remove(at.manifest("pack"), output)
    storage.remove(at.report, output)
    # Of the corpus as it was: where documents came from names those that go, and a signature holds no longer.
    for url in (at.signature, at.public_key, at.provenance_manifest):
        storage.remove(url, output)
    for folder in (at.provenance, at.retrieval):  # passages hold text of the documents, and are found anew
        for name in storage.list_names(folder):
            storage.remove(storage.join(folder, name), output)
    gone = frozenset(journal.tombstones)
    forgotten = forget(
        journal.ledger, frozenset(journal.request_keys), lambda doc_id: tombstone(doc_id) in gone, journal.renamed
    )
    made: dict[str, Manifest] = {stage: staging.staged_manifest(stage) for stage in journal.manifests}
    lease.check()
    for move in journal.moves:
        staging.put(move, made[move.stage])
    if journal.pilot:
        staging.put_file("pilot.json", at.pilot)
    staging.put_file("removed.json", at.tombstones)
    for stage, of_stage in made.items():
        if stage != "pack":
            manifest.write(output, of_stage)
    lease.check()
    if "pack" in made:
        card.write(output, made)
        manifest.write(output, made["pack"])
        storage.write_bytes(at.success, b"")
    storage.remove(at.removal_journal, output)
    staging.clear()
    return forgotten
