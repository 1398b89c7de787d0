"""The removal itself: look, prepare, commit; `finishing` does the rest. What is counted where, and in which order."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import get_args

import msgspec

from augment.contexts.passage_index import read_index
from augment.ledger.forgetting import Forgotten
from pipelines import accounts
from pipelines.delivered import Corpus, corpora, joined
from pipelines.deliveries_begun import refuse_joined, refuse_pending
from pipelines.takedown import parts, shards
from pipelines.takedown.finishing import clear, finish
from pipelines.takedown.ids import Wanted
from pipelines.takedown.settling import chained, settle_left_out, settled
from pipelines.takedown.staging import Journal, Moves, Stage, Staging
from pipelines.tombstones import Removal, Tombstones, read_tombstones, tombstone
from pipelines.watch.files import read_plan
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.config import config_of, layout_of
from sharding.packing.epochs import least_value
from sharding.packing.laying_out import DocumentLayout, encode_delimiters
from sharding.records.families import REQUESTS
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
        search_index: the index of passages in a search server that may hold their text; "" where there is none.
    """

    documents: int = 0
    already: int = 0
    unknown: list[str] = field(default_factory=list)
    files: int = 0
    shards: int = 0
    ledger: Forgotten | None = None
    finished: bool = False
    search_index: str = ""


def remove(
    output: storage.Location, wanted: Wanted | None, *, missing_ok: bool = False, ledger_url: str | None = None
) -> Removed:
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
    output = os.fspath(output)
    at = Output(output)
    at.check_links()
    with Lease(output, "remove") as lease:
        staging = Staging(output, 0)
        done = Removed(search_index=_search_index(at))
        if (left := staging.journal()) is not None:
            _ledger_of(output, left.ledger, ledger_url)
            done.finished = True
            done.ledger = finish(output, left, lease)
            done.documents, done.files = left.documents, len(left.all_moves())
        clear(output)
        if wanted is None:
            if left is None:
                raise RequestError(f"remove: --ids names no documents, and no removal of {output} is to be finished")
            return done
        try:
            prepared = _prepare(output, wanted, done, missing_ok=missing_ok, ledger_url=ledger_url)
        except MillError:
            clear(output)  # nothing was touched
            raise
        if prepared is not None:
            lease.check()
            done.ledger = finish(output, prepared, lease)
            done.documents += prepared.documents
            done.files += len(prepared.all_moves())
            done.shards = sum(move.name.startswith("data/") for move in prepared.all_moves())
    return done


def _search_index(at: Output) -> str:
    """Which index of a search server `index.json` names, before it goes: no output says where a key may be sent."""
    with suppress(MillError):  # what can't be read names none
        if (stored := read_index(at.passages)) is not None and stored.server is not None:
            return stored.server.name
    return ""


@dataclass
class _Part:
    """The first documents of an output or those of a delivery, while a removal from them is prepared.

    Attributes:
        corpus: the documents.
        staging: where new files are prepared.
        layout: how documents were laid out; None where nothing was packed.
        gone: what goes of them.
        made: stage → its manifest without the documents.
    """

    corpus: Corpus
    staging: Staging
    layout: DocumentLayout | None
    gone: parts.Gone
    made: dict[str, Manifest]


def _look(corpus: Corpus, ids: frozenset[str]) -> _Part:
    """What goes of some documents, with the parts before the last stage rebuilt."""
    stages = corpus.stages
    packed = stages.get("pack")
    layout = _layout(packed, stages.get("select")) if packed is not None else None
    staging = Staging(corpus.output, int((packed or stages["score"]).facts["vocab_size"]))
    gone = parts.look(corpus.output, stages, ids, layout)
    made = {
        stage: parts.rebuild(corpus.output, stages[stage], gone, ids, staging)
        for stage in STAGES[:-1]
        if stage in stages
    }
    return _Part(corpus, staging, layout, gone, made)


def _settle(part: _Part, ids: frozenset[str], stones: Tombstones) -> None:
    """The manifests of what remains, which add up, those before the last prepared."""
    packed, made = part.corpus.stages.get("pack"), part.made
    if packed is not None and part.layout is not None:
        items = Counter[str]()
        made["pack"] = shards.rebuild_shards(part.corpus.output, packed, ids, part.layout.config, part.staging, items)
        settle_left_out(part.gone, items)
    made = chained({stage: settled(of_stage, part.gone, stones) for stage, of_stage in made.items()}, stones)
    for stage, of_stage in made.items():
        accounts.check(stage, {name: made[name] for name in STAGES[: STAGES.index(stage) + 1] if name in made})
        part.staging.stage_manifest(of_stage)
    part.made = made


def _prepare(output: str, wanted: Wanted, done: Removed, *, missing_ok: bool, ledger_url: str | None) -> Journal | None:
    """Everything that is to be done, committed; None where an earlier removal has done it."""
    refuse_joined(output)
    refuse_pending(output)
    all_parts = list(corpora(output))
    _refuse(output, all_parts[0].stages)
    before = read_tombstones(output)
    gone_before = frozenset(before.ids)
    ids = wanted.ids
    done.already = sum(tombstone(doc_id) in gone_before for doc_id in ids)
    looked = [_look(part, ids) for part in all_parts]
    found = {doc_id for part in looked for doc_id in part.gone.found}
    if len(found) == sum(part.stages["score"].counts["documents"] for part in all_parts):
        raise RequestError(f"--ids: all documents of {output} would go: delete the output and its ledger instead")
    going = found.union(*(part.gone.quarantined for part in looked))
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
    for part in looked:
        _settle(part, ids, stones)
    first, *later = looked
    if later:
        first.staging.stage_manifest(joined(first.made["pack"], {part.corpus.number: part.made for part in later}))
    first.staging.stage_json("removed.json", msgspec.to_builtins(stones))
    keys = {key for part in looked for key in part.gone.request_keys}
    requests = [
        url
        for part in all_parts
        if "augment" in part.stages
        for url in manifest.file_urls(part.output, part.stages["augment"], REQUESTS.name)
    ]
    journal = Journal(
        at=now,
        moves=first.staging.moves,
        manifests=_in_order(first),
        documents=len(going),
        tombstones=[tombstone(doc_id) for doc_id in ids],
        ledger=_ledger_of(output, (read_plan(output) or {}).get("ledger"), ledger_url),
        request_keys=sorted(keys),
        renamed=parts.other_askers(requests, ids, keys),
        pilot=_stage_pilot(output, ids, first.staging),
        deliveries={part.corpus.number: _moves(part, ids) for part in later},
    )
    first.staging.commit(journal)
    return journal


def _moves(part: _Part, ids: frozenset[str]) -> Moves:
    return Moves(part.staging.moves, _in_order(part), _stage_pilot(part.corpus.output, ids, part.staging))


def _in_order(part: _Part) -> list[Stage]:
    return [stage for stage in get_args(Stage) if stage in part.made]


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


def _layout(packed: Manifest, selected: Manifest | None) -> DocumentLayout:
    config, tokenizer = config_of(packed), load_tokenizer(packed.config["tokenizer"])
    if tokenizer.fingerprint != packed.facts["tokenizer_fingerprint"]:
        raise MillError(f"tokenizer: {tokenizer.name} is not the one that the shards were packed with")
    least = least_value(selected.config["select"]) if selected is not None else None
    return DocumentLayout(config, layout_of(packed), tokenizer, encode_delimiters(config, tokenizer), least)


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
