"""The pilot of a plan: a few segments really generated, and selected among as the select stage would.

It generates through the augment stage's own transforms into the run's own ledger, so the run will find what it buys.
What it measures takes the place of a plan's assumptions.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from augment.feeding import worker
from augment.ledger.parts import PARTIAL_PART, ledger_parts
from augment.ledger.reading import collapse_duplicates, read_ledger
from augment.ledger.transforms import FOUND_COLUMNS, FindMissing, ReadLedger
from augment.recipes.judging import is_verdict
from augment.requests.contraction import contracted_segments
from augment.requests.planner import TracePlanner
from augment.selection.account import account_counts, kept_nats, split_account
from augment.selection.candidates import JudgedSegment, make_candidates
from augment.selection.controls import pools_of
from augment.selection.judging import Judge, document_hash
from augment.selection.keeping import choose
from augment.selection.values import needs_controls
from augment.selection.valuing import ValuedSegment, Valuer
from augment.transforms import GenerateMissing
from pipelines.beam_options import beam_options, local_shuffle
from pipelines.config import MillConfig
from pipelines.joints import (
    Choices,
    ScorerNats,
    contexts_here,
    graded_here,
    holdback_of,
    trace_planner,
    with_index,
    work_order,
)
from pipelines.passages import build_index
from pipelines.plan.chance import MIN_MEASURED
from pipelines.plan.corpus import Evidence, SampledDocument
from pipelines.plan.measured import MeasuredTier, Pilot
from pipelines.running import run_pipeline
from pipelines.stopping import draining, on_notice
from sharding.errors import MillError
from sharding.hashing import content_id
from sharding.models.tokenizer import load_tokenizer
from sharding.records.types import Candidate, LedgerRow, Request
from sharding.storage import clock
from sharding.storage.output import Output

LEAST_PER_TIER = 4
"""A tier that gets segments at all has at least so many in the pilot, or its measurements would say nothing; fewer only
where so many were not asked for."""


def measure(
    config: MillConfig, evidence: Evidence, choices: Choices, count: int, beam_args: Sequence[str] = ()
) -> Pilot:
    """Generate about `count` segments of the sample and measure them.

    Raises:
        MillError: too much of it failed; what was generated is in the ledger.
    """
    planner = with_index(trace_planner(config), config)
    if planner.index is not None:
        build_index(config, planner.index, beam_options(beam_args))
    requests = _requests(config, planner, evidence, choices, pick_segments(config, evidence, choices, count))
    rows = generated(config, planner, requests, beam_args)
    return _measured(config, requests, rows)


def generated(
    config: MillConfig,
    planner: TracePlanner,
    requests: Sequence[tuple[SampledDocument, Request]],
    beam_args: Sequence[str],
) -> list[LedgerRow]:
    """The ledger's rows for some requests, after what it lacked of them was generated.

    Raises:
        MillError: too much of it failed, or is empty; what was generated is in the ledger.
    """
    _generate(config, planner, requests, beam_args)
    wanted = {request.request_key for _, request in requests}
    rows = collapse_duplicates(row for row in read_ledger(config.ledger_url) if row.request_key in wanted)
    empty, allowed = sum(not row.text.strip() for row in rows), config.ledger.max_empty_fraction
    if empty > allowed * len(rows):
        raise worker.too_many_empty(empty, len(rows), allowed, config.ledger_url)
    return rows


def pick_segments(config: MillConfig, evidence: Evidence, choices: Choices, count: int) -> set[str]:
    """Ids of the segments to generate: by hash, as many of each tier as its share, but a few of each at least."""
    by_tier: dict[int, list[str]] = {}
    for document in evidence.sample:
        for segment, tier in zip(document.segments, choices.tiers(document.segments), strict=True):
            if not config.budget.tiers[tier].skips:
                by_tier.setdefault(tier, []).append(segment.segment_id)
    allocation = choices.allocation
    total = sum(allocation.tiers[tier].segments for tier in by_tier)
    least = max(1, min(LEAST_PER_TIER, count // max(1, len(by_tier))))
    shares = {tier: round(count * allocation.tiers[tier].segments / total) if total else 0 for tier in by_tier}
    quotas = {tier: min(max(share, least), len(by_tier[tier])) for tier, share in shares.items()}
    while sum(quotas.values()) > max(count, len(quotas)):  # what was rounded up is taken from where there is most
        quotas[max(quotas, key=lambda tier: (quotas[tier], tier))] -= 1
    room = {tier: len(ids) - quotas[tier] for tier, ids in by_tier.items()}
    while sum(quotas.values()) < count and any(room.values()):  # what a tier has too few segments for, others get
        most = max(room, key=lambda tier: (room[tier], tier))
        quotas[most], room[most] = quotas[most] + 1, room[most] - 1
    chosen: set[str] = set()
    for tier, ids in by_tier.items():
        chosen.update(sorted(ids, key=lambda name: content_id(f"pilot {name}"))[: quotas[tier]])
    return chosen


def _requests(
    config: MillConfig, planner: TracePlanner, evidence: Evidence, choices: Choices, chosen: set[str]
) -> list[tuple[SampledDocument, Request]]:
    found = []
    documents = [
        document
        for document in evidence.sample
        if not chosen.isdisjoint(segment.segment_id for segment in document.segments)
    ]
    wanted = [_contractions_wanted(planner, document, choices, chosen) for document in documents]
    contexts = contexts_here(config, planner, [(d.segments, n) for d, n in zip(documents, wanted, strict=True)])
    for document in documents:
        for request in planner.requests(document.segments, choices, contexts[document.segments[0].doc_id]):
            if isinstance(request, Request) and request.segment_id in chosen:
                found.append((document, request))
    return found


def _contractions_wanted(planner: TracePlanner, document: SampledDocument, choices: Choices, chosen: set[str]) -> int:
    """How many segments have to be contracted for those that were chosen."""
    places = contracted_segments(planner, document.segments, choices)
    return max((place for place in places if document.segments[place].segment_id in chosen), default=0)


def _generate(
    config: MillConfig,
    planner: TracePlanner,
    requests: Sequence[tuple[SampledDocument, Request]],
    beam_args: Sequence[str],
) -> None:
    order = work_order(config, clock.now_s(config.ledger_url))
    options = beam_options(beam_args)
    with local_shuffle(options, Output(config.output).shuffle("pilot")):
        pipeline = beam.Pipeline(options=options)
        wanted = [request for _, request in requests]
        missing = {
            "requests": pipeline | "Requests" >> beam.Create(wanted).with_output_types(Request),
            "rows": pipeline | "Ledger" >> ReadLedger(ledger_parts(config.ledger_url), FOUND_COLUMNS),
            "begun": pipeline | "Interrupted" >> ReadLedger(ledger_parts(config.ledger_url, kind=PARTIAL_PART)),
        } | "Missing" >> FindMissing(1)
        missing["requests"] | "Generate" >> GenerateMissing(planner, config.feeding, order)
        try:
            with draining(order.drain_s):
                run_pipeline(pipeline, "pilot")
        finally:
            worker.close_all(drain=on_notice())


def judged_of(
    config: MillConfig, requests: Sequence[tuple[SampledDocument, Request]], rows: Sequence[LedgerRow]
) -> tuple[list[tuple[Request, JudgedSegment]], dict[str, float | None]]:
    """Each request with its judged candidates, those that failed left out; and tokens per second by model.

    A call of a recipe counts for the model that made it. What a judge of the candidates wrote is left out: it lies
    beside them where an earlier pilot had it graded.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    judge = Judge(config.select, tokenizer, holdback_of(config).valued_tiers)
    rows_of: dict[str, list[LedgerRow]] = {}
    for row in rows:
        rows_of.setdefault(row.request_key, []).append(row)
    tiers = {tier.name: tier for tier in config.budget.tiers}
    made: dict[str, list[LedgerRow]] = {}
    judged: list[tuple[Request, JudgedSegment]] = []
    for document, request in requests:
        own = rows_of.get(request.request_key, [])
        for row in own:
            if not row.composed and not is_verdict(row.step):
                made.setdefault(str(tiers[request.tier].model_of(row.step)), []).append(row)
        if not (candidates := make_candidates(request, own, tokenizer)):
            continue  # it failed
        ids = np.concatenate([segment.input_ids for segment in document.segments])
        start = sum(len(segment.input_ids) for segment in document.segments[: request.segment_index])
        judged.append((request, judge.judge(judge.ask(request, document_hash(ids), ids, start), candidates)))
    if not judged:
        raise MillError("pilot: nothing was generated; no tier gets a segment of the sample, or every request failed")
    return judged, {name: tokens_per_second(of_model) for name, of_model in sorted(made.items())}


def valued_of(config: MillConfig, segments: Sequence[JudgedSegment]) -> Iterator[ValuedSegment]:
    """Each segment with its candidates' values, with the pilot's own traces as controls."""
    select = config.select
    segments = graded_here(config, segments)
    valuer = Valuer(select, ScorerNats.of(config), config.difficulty.threshold_nats)
    pools = pools_of(segments, select.gain.control_pool) if needs_controls(select.value_name) else {}
    for segment in segments:
        yield valuer.valued(segment, pools.get(segment.tier, ()))


def by_tier(entries: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, MeasuredTier]:
    """(tier, the entries of a segment in its lists) as measured tiers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for tier, entry in entries:
        found.setdefault(tier, []).append(entry)
    return {
        name: MeasuredTier(**{field: tuple(entry[field] for entry in own) for field in own[0]})
        for name, own in sorted(found.items())
    }


def _measured(
    config: MillConfig, requests: Sequence[tuple[SampledDocument, Request]], rows: Sequence[LedgerRow]
) -> Pilot:
    judged, rates = judged_of(config, requests, rows)
    numbers: dict[str, int] = {}
    counts: Counter[str] = Counter()
    entries = []
    for (request, segment), valued in zip(judged, valued_of(config, [one for _, one in judged]), strict=True):
        number = numbers.setdefault(request.doc_id, len(numbers))
        decided = choose(valued.candidates, config.select)
        counts.update(account_counts(decided, valued))
        entries.append((request.tier, measurements(segment, decided) | {"document": number}))
    return Pilot(tiers=by_tier(entries), tokens_per_second=rates, counts=split_account(counts)[0])


def measurements(judged: JudgedSegment, decided: Sequence[Candidate]) -> dict[str, Any]:
    """The entries of one segment in the lists of `MeasuredTier`."""
    kept = [candidate for candidate in decided if candidate.kept]
    return {
        "thought_tokens": sum(candidate.thought_tokens for candidate in decided),
        "prompt_tokens": statistics.fmean(candidate.prompt_tokens for candidate in decided),
        "generations": len(decided),
        "accepted": sum(not candidate.reasons for candidate in judged.candidates),
        "cut": sum(candidate.closed != "natural" for candidate in decided),
        "kept": len(kept),
        "kept_tokens": sum(len(candidate.input_ids) for candidate in kept),
        "heldout_nats": kept_nats(decided),
    }


def tokens_per_second(rows: Sequence[LedgerRow]) -> float | None:
    """The rate at which an engine made these, while at least one of them was under way.

    Its start is no part of that, nor is the time between a pilot that was interrupted and the one that went on. None of
    fewer than `MIN_MEASURED`.
    """
    if len(rows) < MIN_MEASURED:
        return None
    busy_s, until = 0.0, -math.inf
    for row in sorted(rows, key=lambda row: row.finished_at - row.wall_s):
        busy_s += max(row.finished_at - max(row.finished_at - row.wall_s, until), 0.0)
        until = max(until, row.finished_at)
    return sum(row.thought_tokens for row in rows) / busy_s if busy_s > 0 else None
