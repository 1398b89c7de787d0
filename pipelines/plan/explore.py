"""An exploring pilot: segments of every kind, each tried with the tiers, and measured as the run would keep them.

scored parts ─► frame ─► strata ─► requests of every tier ─► the run's ledger ─► judged, valued ─► a `Pilot`

Requests are those that the run would make of a segment that its plan gives this tier: so the run finds what was bought.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from augment.ledger.parts import every_part
from augment.requests.contraction import contractions_wanted
from augment.requests.planner import TracePlanner
from augment.selection.account import account_counts, kept_nats, split_account
from augment.selection.keeping import choose
from augment.selection.values import needs_controls
from augment.selection.valuing import ValuedSegment
from difficulty.budget.tiers import TierConfig
from pipelines.beam_options import beam_options
from pipelines.config import MillConfig
from pipelines.joints import Holdback, contexts_here, hardest_spans, holdback_of, trace_planner, with_index
from pipelines.passages import build_index
from pipelines.plan import strata
from pipelines.plan.corpus import SampledDocument
from pipelines.plan.measured import MeasuredTier, Pilot
from pipelines.plan.pilot import by_tier, generated, judged_of, measurements, valued_of
from pipelines.plan.tier_prices import price_of, rate_of
from sharding.beam.part_join import scored_documents
from sharding.errors import RequestError
from sharding.hashing import content_id
from sharding.records.types import Candidate, Request, ScoredSegment
from sharding.storage import manifest
from sharding.storage.manifest import Manifest

FRAME_SEGMENTS = 20_000
"""Segments that the tried ones are drawn from; of a larger corpus whole parts, which are filled by hash."""

FRAME_TOKENS = 20_000_000
"""The frame ends here as well: about 200 MB."""

FRAME_PER_TRIED = 10

_COLUMNS = ("input_ids", "surprisal_nats", "entropy_nats", "memory_nats", "difficulty_nats", "source")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A segment that the pilot tries.

    Attributes:
        document: which it is of.
        chance: with which each of `tiers` is tried on it.
        tiers: by name.
    """

    document: SampledDocument
    segment: ScoredSegment
    chance: float
    tiers: frozenset[str]


def thinking_tiers(config: MillConfig) -> list[TierConfig]:
    """The tiers to try.

    Raises:
        RequestError: what they gain can't be measured; says what to change.
    """
    tiers = [tier for tier in config.budget.tiers if not tier.skips]
    if not tiers:
        raise RequestError("plan --explore: budget.tiers has no tier with a model, so there is nothing to try")
    valued = holdback_of(config).valued_tiers
    if unvalued := [tier.name for tier in tiers if tier.name not in valued]:
        raise RequestError(
            f"plan --explore: the traces of tier {' and '.join(unvalued)} would have no value, so what "
            "they gain can't be measured; set select.value: continuation_gain"
        )
    if config.select.value_name == "length":
        raise RequestError(
            "plan --explore: select.value: length measures no gain; set continuation_gain, self_gain or a value of "
            "your own that does"
        )
    return tiers


def frame_of(config: MillConfig, scored: Manifest, count: int) -> list[SampledDocument]:
    """The documents of the scored parts that segments are drawn from: all, or of a large corpus whole parts by hash."""
    output = config.scored or config.output
    least = max(FRAME_SEGMENTS, FRAME_PER_TRIED * count)
    found: list[SampledDocument] = []
    segments = tokens = 0
    for group, url in enumerate(sorted(manifest.file_urls(output, scored, "segments"), key=content_id)):
        for document in scored_documents(url, _COLUMNS):
            own = tuple(document.segments())
            found.append(SampledDocument(own, 0, group))
            segments, tokens = segments + len(own), tokens + len(document.input_ids)
            if tokens >= FRAME_TOKENS:
                return found
        if segments >= least:
            break
    return found


def draw(
    config: MillConfig, frame: Sequence[SampledDocument], tiers: Sequence[TierConfig], count: int, tries: int
) -> list[Tried]:
    """About `count` segments of the frame, each with `tries` of the tiers.

    Raises:
        RequestError: they are of too few documents to have controls.
    """
    places = [(document, segment) for document in frame for segment in document.segments]
    if not places:
        raise RequestError("plan --explore: no segment was scored, so there is none to try")
    chosen, chances = strata.draw([segment for _, segment in places], count)
    names = [tier.name for tier in tiers]
    found = [
        Tried(
            document=places[place][0],
            segment=places[place][1],
            chance=float(chance) * tries / len(names),
            tiers=frozenset(strata.tiers_tried(places[place][1].segment_id, names, tries)),
        )
        for place, chance in zip(chosen.tolist(), chances, strict=True)
    ]
    controls = config.select.gain.controls if needs_controls(config.select.value_name) else 0
    for name in names:
        documents = len({one.segment.doc_id for one in found if name in one.tiers})
        if documents <= controls:
            raise RequestError(
                f"plan --explore: tier {name} is tried on segments of {documents} documents, and a gain is measured "
                f"beside traces of select.gain.controls={controls} others: raise --pilot, or have a larger corpus"
            )
    return found


@dataclass(frozen=True)
class _OneTier:
    """`SegmentChoices` that ask for one tier on some segments, and for nothing on the others."""

    tier_index: int
    skip_index: int
    segment_ids: frozenset[str]
    holdback: Holdback

    def tiers(self, segments: Sequence[ScoredSegment]) -> list[int]:
        asked = (segment.segment_id in self.segment_ids for segment in segments)
        return [self.tier_index if is_asked else self.skip_index for is_asked in asked]

    def shown_tokens(self, segment: ScoredSegment, tier: str) -> int:
        return self.holdback.shown_tokens(segment, tier)

    def focus(self, segment: ScoredSegment, text: str) -> Sequence[str]:
        return hardest_spans(self.holdback, segment, text)


def requests_of(
    config: MillConfig, planner: TracePlanner, tried: Sequence[Tried]
) -> list[tuple[SampledDocument, Request]]:
    """What the run would ask for if its plan gave each segment the tiers that are tried."""
    # One that skips, in case the config has none.
    asking = dataclasses.replace(planner, tiers=(*planner.tiers, None))
    holdback = holdback_of(config)
    asked: list[tuple[SampledDocument, list[_OneTier]]] = []
    for _, group in itertools.groupby(tried, key=lambda one: id(one.document)):
        own = list(group)
        of_tiers = []
        for index, tier in enumerate(planner.tiers):
            ids = frozenset(one.segment.segment_id for one in own if tier is not None and tier.tier in one.tiers)
            if ids:
                of_tiers.append(_OneTier(index, len(planner.tiers), ids, holdback))
        asked.append((own[0].document, of_tiers))
    contexts = contexts_here(
        config,
        planner,
        [
            (document.segments, max(contractions_wanted(asking, document.segments, choices) for choices in of_tiers))
            for document, of_tiers in asked
            if of_tiers
        ],
    )
    return [
        (document, request)
        for document, of_tiers in asked
        for choices in of_tiers
        for request in asking.requests(document.segments, choices, contexts[document.segments[0].doc_id])
        if isinstance(request, Request)
    ]


def price_in_words(config: MillConfig, requests: Sequence[Request], held: set[str], tried: int) -> str:
    """What the pilot is about to spend, at most or as expected, beyond what the ledger holds."""
    tiers = {tier.name: tier for tier in config.budget.tiers}
    missing = [request for request in requests if request.request_key not in held]
    tokens = sum(tiers[request.tier].tokens_per_segment for request in missing)
    dollars = hours = 0.0
    known_dollars = known_hours = True
    for request in missing:
        tier = tiers[request.tier]
        price, (rate, _) = price_of(config, tier.models), rate_of(config, tier.models, None)
        known_dollars &= price is not None
        known_hours &= rate is not None
        dollars += tier.tokens_per_segment * (price or 0.0) / 1e6
        hours += tier.tokens_per_segment / (rate or 1.0) / 3600
    ceiling = any(tiers[request.tier].expected_tokens is None for request in missing)
    costs = [f"{hours:,.2f} GPU-hours"] * known_hours + [f"{dollars:,.2f} dollars"] * known_dollars
    return (
        f"explores {tried:,} segments: {len(requests):,} requests of {len({r.tier for r in requests})} tiers, "
        f"{len(requests) - len(missing):,} of them in the ledger already; the others take "
        f"{'at most' if ceiling else 'about'} {tokens:,.0f} thinking tokens"
        + (f" ({' and '.join(costs)})" if costs and missing else "")
    )


def measure(config: MillConfig, tried: Sequence[Tried], beam_args: Sequence[str], say: Say) -> tuple[Pilot, list[str]]:
    """Generate what the ledger lacks, and measure; with what the reader should know, in words.

    Raises:
        MillError: too much of it failed; what was generated is in the ledger.
    """
    planner = with_index(trace_planner(config), config)
    if planner.index is not None:
        build_index(config, planner.index, beam_options(beam_args))
    requests = requests_of(config, planner, tried)
    wanted = {request.request_key for _, request in requests}
    held = _held(config.ledger_url, wanted)
    say(price_in_words(config, [request for _, request in requests], held, len(tried)))
    judged, rates = judged_of(config, requests, generated(config, planner, requests, beam_args))
    of_segment = {one.segment.segment_id: one for one in tried}
    numbers: dict[str, int] = {}
    counts: Counter[str] = Counter()
    entries = []
    for (request, segment), valued in zip(judged, valued_of(config, [one for _, one in judged]), strict=True):
        one = of_segment[request.segment_id]
        decided = choose(valued.candidates, config.select)
        counts.update(account_counts(decided, valued))
        entry = measurements(segment, decided)
        entry |= {
            "document": numbers.setdefault(segment.document, len(numbers)),
            "segment": request.segment_id,
            "request_key": request.request_key,
            "difficulty_nats": one.segment.difficulty_nats,
            "weight": 1 / one.chance,
            "gain_nats": gain_of(config, valued),
            "null_nats": _null(valued),
        }
        entries.append((request.tier, entry))
    pilot = Pilot(tiers=by_tier(entries), tokens_per_second=rates, counts=split_account(counts)[0])
    return pilot, list(_notes(pilot, len(requests) - len(judged)))


def _held(ledger_url: str, wanted: set[str]) -> set[str]:
    """Which of these request keys the ledger has something of; nothing else of it is read."""
    batches = (batch for _, part in every_part(ledger_url, ["request_key"]) for batch in part or ())
    return wanted.intersection(key for batch in batches for key in batch["request_key"].to_pylist())


def gain_of(config: MillConfig, valued: ValuedSegment) -> float | None:
    """What thinking about a segment brings the corpus, in nats: what the kept trace gains, 0 where none passes a gate.

    Under `keep: best_above` it is that of the best, below the threshold or above: the threshold looks at the same noise
    as the measurement, and what passes it would look better than it is. None where the gain can't be told.
    """
    select = config.select
    if not any(not candidate.reasons for candidate in valued.candidates):
        return 0.0
    if select.keep == "best_above":
        select = dataclasses.replace(select, keep="best")
    decided: list[Candidate] = choose(valued.candidates, select)
    return kept_nats(decided)


def _null(valued: ValuedSegment) -> float | None:
    first, choice = valued.null_first_nats, valued.null_choice_nats
    return None if first is None or choice is None else first + choice


def _notes(pilot: Pilot, failed: int) -> Iterator[str]:
    if failed:
        yield f"{failed:,} requests of the pilot failed or could not be made; they are left out"
    for name, tier in pilot.tiers.items():
        untold = sum(gain is None for gain in tier.gain_nats)
        if untold:
            yield (
                f"what {untold:,} of {len(tier.gain_nats):,} segments gain by tier {name} can't be told (nothing "
                "follows them, the trace is too long, or too few controls with as many traces); they are taken to be "
                "like the others"
            )


def told(tier: MeasuredTier) -> np.ndarray:
    """The places of the segments whose gain could be told, (n,) int64."""
    return np.flatnonzero([gain is not None for gain in tier.gain_nats])
