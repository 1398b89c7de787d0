"""Append: later documents become more shards of a finished corpus, which keeps every byte. `thoughtmill append`.

    SOURCE ─► score, held against all earlier documents ─► augment, select, pack ─► deliveries/N, an output of its own
              └► nothing new? said, and nothing is left                              │ whole?
                                        OUTPUT/MANIFEST.json names its shards too ◄──┘ one write; then the card

Until that write the corpus is what it was. A delivery that was interrupted is gone on with by the same command: its
stages are skipped, resumed or made as those of any run are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pipelines import card
from pipelines.config import DeliveryConfig, MillConfig
from pipelines.delivered import Corpus, check_joins, corpora, deliveries_of, joined
from pipelines.deliveries_begun import RECORD_NAME, TOLD_NAME, untold
from pipelines.epochs import refuse_several
from pipelines.joints.carried import first_allocation
from pipelines.run import OnStage, mill
from pipelines.scorer_identity import difficulty_section, model_inputs
from pipelines.tombstones import refuse_unfinished
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.sources import SourceConfig
from sharding.storage import manifest
from sharding.storage.json_files import read_json
from sharding.storage.lease import Lease
from sharding.storage.manifest import STAGES, Manifest
from sharding.storage.output import Output

Plan = Literal["first", "own"]

_OWN = ("num_shards", "max_rows")
"""Keys of `pack` that may be others for a delivery: how many shards it gets, and how long they are."""

_SHOWN = 5


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """DELIVERY.json: what was delivered, as it was asked for, and by which plan."""

    sources: list[str]
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Appended:
    """What came of a delivery.

    Attributes:
        number: of the delivery; None where it brought nothing new.
        documents: how many joined.
        delivered_before: how many of the source's are in the corpus already, of the same id and text.
        copies: how many are exact copies or near-copies of earlier ones, and were left out as the config says.
        rows, shards: how many joined.
    """

    number: int | None
    documents: int
    delivered_before: int
    copies: int
    rows: int
    shards: int


def append(
    config: MillConfig,
    sources: Sequence[str],
    *,
    plan: Plan = "first",
    beam_args: Sequence[str] = (),
    on_stage: OnStage = lambda stage, manifest, did: None,
) -> Appended:
    """Mill more documents and join them to the corpus of a finished run.

    Args:
        config: of the run. Its sources say how the documents are read, but for where they are; a budget of their own
            is its `budget`.
        sources: where they are: a path in place of that of `source`; of several sources "NAME=PATH" each.
        plan: "first": tiers begin at the cut points of the first documents; "own": they get a plan of their own.
        beam_args, on_stage: as `pipelines.run.mill` takes them.

    Raises:
        RequestError: the corpus isn't finished, was made by another config, or has control arms; another delivery is to
            be finished first; a source isn't known; a run is at work on it.
        MillError: a stage failed, what was made is damaged, or the store refused.
    """
    output = config.output
    check_appendable(config, plan)
    finish_joins(output)
    number = 1 + len(deliveries_of(manifest.require(output, "pack")))
    delivery = delivery_config(config, sources, number, plan)
    _begin(output, number, Record(sources=list(sources), plan=plan))
    options: dict[str, Any] = {"beam_args": beam_args, "replace": True, "on_stage": on_stage}
    scored = mill(delivery, stages=("score",), **options)["score"]
    if not scored.counts["documents"]:
        _forget(output, number)
        return _appended(None, scored, None)
    stages = {"score": scored} | mill(delivery, stages=STAGES[1:], **options)
    join(output, number)
    return _appended(number, scored, stages["pack"])


def _appended(number: int | None, scored: Manifest, packed: Manifest | None) -> Appended:
    count = scored.counts.get
    return Appended(
        number=number,
        documents=scored.counts["documents"],
        delivered_before=count("documents_delivered_before", 0),
        copies=count("duplicates_dropped", 0) + count("near_copies_dropped", 0),
        rows=0 if packed is None else packed.counts["rows"],
        shards=0 if packed is None else len(packed.files.get("shards", [])),
    )


def check_appendable(config: MillConfig, plan: Plan) -> None:
    """Refuse a corpus that nothing can join, or a config that is not the one it was made by.

    Raises:
        RequestError: says why, and what to do.
        MillError: a stage hasn't finished.
    """
    output, at = config.output, Output(config.output)
    if config.delivery is not None:
        raise RequestError(f"delivery: {output} is a delivery itself: append with the config of {config.delivery.of}")
    refuse_unfinished(output)
    at.check_links()
    if not storage.exists(at.success):
        raise RequestError(f"output: {output} holds no finished corpus to append to: `thoughtmill run CONFIG` makes it")
    refuse_several(output, manifest.read(output, "pack"), "documents that come later could join one alone")
    if arms := [name for name in storage.list_names(storage.join(output, "arms")) if "." not in name]:
        raise RequestError(
            f"output: {output} has control arms ({', '.join(arms[:_SHOWN])}), which were cut to the length of the "
            f"corpus as it is: delete {storage.join(output, 'arms')}, or append to another output"
        )
    if plan == "first" and first_allocation(output).by_gain is not None:
        raise RequestError(
            f"budget.policy: the plan of {output} goes by a pilot on its own documents, which says nothing of others: "
            "add --own-plan and another policy, such as --set budget.policy=adaptive"
        )
    if differ := list(_differences(config, plan)):
        raise RequestError(
            f"output: {output} was made otherwise than this config says ({'; '.join(differ[:_SHOWN])}): append with "
            f"the config that it was made by, {at.config}; another budget goes with --own-plan"
        )


def _differences(config: MillConfig, plan: Plan) -> list[str]:
    """What of the corpus the config would make otherwise, as far as its documents must be of one kind."""
    from pipelines.augment import Augment
    from pipelines.pack import Pack
    from pipelines.select import Select
    from pipelines.stage import differences

    scored = manifest.require(config.output, "score")
    sections = {"tokenizer": config.tokenizer, "difficulty": difficulty_section(config.difficulty)}
    inputs = {"tokenizer": load_tokenizer(config.tokenizer).fingerprint, **model_inputs(config.difficulty)}
    differ = differences({name: scored.config.get(name) for name in sections}, sections)
    differ += differences({name: scored.inputs.get(name) for name in inputs}, inputs, "input ")
    if differ:
        return differ
    for kind in ((Augment,) if plan == "first" else ()) + (Select, Pack):
        stage, found = kind(config), manifest.require(config.output, kind.name)
        before, now = ({k: v for k, v in of.items() if k not in manifest.TOLD} for of in (found.config, stage.sections))
        for of in (before, now):
            if "pack" in of:
                of["pack"] = {key: value for key, value in of["pack"].items() if key not in _OWN}
        differ += differences(before, now) + differences(found.inputs, stage.inputs, "input ")
    return differ


def delivery_config(config: MillConfig, sources: Sequence[str], number: int, plan: Plan) -> MillConfig:
    """The config of a delivery: that of the corpus, with other sources and an output of its own.

    Args:
        sources: see `append`.

    Raises:
        RequestError: a source isn't known, is given twice, or there is none.
    """
    given = _given(config, sources)
    return dataclasses.replace(
        config,
        source=None if config.source is None else given[0],
        sources=() if config.source is not None else tuple(given),
        scored=None,
        round=None,
        output=Output(config.output).delivery(number),
        ledger=dataclasses.replace(config.ledger, path=config.ledger_url),
        delivery=DeliveryConfig(of=config.output, number=number, allocation=plan),
    )


def _given(config: MillConfig, sources: Sequence[str]) -> list[SourceConfig]:
    """The sources of the config, at the places that are given."""
    if config.source is not None:
        if len(sources) != 1:
            raise RequestError(
                f"--source: {len(sources)} are given, and the config has one source: name one file, folder or glob"
            )
        return [dataclasses.replace(config.source, path=sources[0])]
    known = {source.name: source for source in config.sources}
    found: dict[str, SourceConfig] = {}
    for each in sources:
        name, _, path = each.partition("=")
        if name not in known or not path or name in found:
            raise RequestError(
                f"--source: {each!r} {'is the second of its source' if name in found else 'names no source'}: write "
                f"NAME=PATH, once each, with a name of {', '.join(known)}"
            )
        found[name] = dataclasses.replace(known[name], path=path)
    if not found:
        raise RequestError(f"--source: none is given: write NAME=PATH, with a name of {', '.join(known)}")
    return [found[name] for name in known if name in found]


def _begin(output: str, number: int, record: Record) -> None:
    """Write down what is delivered, or find it written.

    Raises:
        RequestError: another delivery was begun and has not joined.
    """
    url = storage.join(Output(output).delivery(number), RECORD_NAME)
    if not storage.exists(url):
        storage.write_json(url, msgspec.to_builtins(record))
        return
    found = read_json(url, Record, "the record of a delivery")
    if found != record:
        asked = " ".join(f"--source {source}" for source in found.sources)
        raise RequestError(
            f"output: delivery {number} to {output} was interrupted: `thoughtmill append CONFIG {asked}"
            f"{' --own-plan' * (found.plan == 'own')}` finishes it; or delete {Output(output).delivery(number)}, and "
            "nothing of it has joined the corpus"
        )


def _forget(output: str, number: int) -> None:
    """Remove what a delivery has left that brought nothing; its record last."""
    folder = Output(output).delivery(number)
    fs, path = storage.filesystem(folder)
    fs.invalidate_cache()
    names = sorted(name[len(path) :].lstrip("/") for name in fs.find(path))
    for name in sorted(names, key=lambda name: name == RECORD_NAME):
        storage.remove(storage.join(folder, name), folder)


def join(output: str, number: int) -> None:
    """Name the shards of a delivery in the manifest of its corpus: one write. Then all that tells of the corpus.

    Raises:
        MillError: a file of the delivery is damaged, or the corpus has changed since it was begun; nothing was touched.
    """
    from pipelines.verify import verify

    at = Output(output).delivery(number)
    report = verify(at)
    if not report.ok:
        shown = "; ".join(f"{problem.where}: {problem.what}" for problem in report.problems[:_SHOWN])
        raise MillError(
            f"delivery {number} to {output} is damaged and joins nothing ({shown}): delete {at} and append it again; "
            "its generations are in the ledger"
        )
    with Lease(output, "append") as lease:
        refuse_unfinished(output)
        stages = {stage: manifest.require(at, stage) for stage in STAGES}
        check_joins(output, stages["score"])
        first, *others = corpora(output)
        parts = [*others, Corpus(at, number, stages)]
        made = joined(first.stages["pack"], {part.number: part.stages for part in parts})
        lease.check()
        manifest.write(output, made)
        lease.check()
        _tell(output)


def finish_joins(output: str) -> None:
    """Do what is left to do where a command was killed behind the one write."""
    if untold(output):
        with Lease(output, "append"):
            _tell(output)


def _tell(output: str) -> None:
    """Bring what tells of the corpus up to date; a signature and provenance of it as it was go, as with a removal."""
    at = Output(output)
    for url in (at.signature, at.public_key, at.provenance_manifest, at.report):
        storage.remove(url, output)
    for name in storage.list_names(at.provenance):
        storage.remove(storage.join(at.provenance, name), output)
    card.write(output, {stage: manifest.require(output, stage) for stage in STAGES})
    for delivery in deliveries_of(manifest.require(output, "pack")):
        storage.write_bytes(storage.join(at.delivery(delivery.number), TOLD_NAME), b"")
