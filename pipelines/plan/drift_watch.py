"""Watching for drift: a thread of the process that submitted the augment stage, which reads what the ledger has got.

    ledger parts of this run ─► totals by tier and document ─► `find_drifts` ─┬─► a warning, once for each tier and kind
    (of a sample ─► the gates)                                          │
                                                                        ├─► stages/augment/drift.json, for `status`
                                                                        └─► beyond `budget.stop_if`: all workers stop

It looks in one place at what all processes and machines have generated, and takes at most a hundredth of the time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from augment.feeding import worker
from augment.feeding.stopping import stop_everywhere
from augment.ledger.parts import every_part
from augment.requests.planner import TracePlanner
from difficulty.budget.allocation import Allocation
from difficulty.budget.stopping import StopConfig
from pipelines.config import MillConfig
from pipelines.joints import goes_by_gain
from pipelines.plan.drift import Promise, Totals, find_drifts, promises_of
from pipelines.plan.drift_gates import SampledGates
from pipelines.plan.explored import of_plan
from pipelines.plan.measured import read_pilot
from pipelines.watch.files import Drift
from sharding import storage
from sharding.errors import RequestError
from sharding.hashing import text_number
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

logger = logging.getLogger(__name__)

LOOK_S = 5.0
MAX_SHARE = 0.01
"""Of the time, so much may go into reading."""

IN_FLIGHT_TIMES = 2.0
"""What is in flight is taken to be no longer than so many times the longest that has ended."""

MAX_DOCUMENTS = 1 << 16
"""Of a tier so many are watched; of more, those with the smallest hashes."""

_COLUMNS = ("segment_id", "tier", "prompt_version", "thought_tokens", "closed", "wall_s", "finished_at")


class Generations:
    """What a run has generated, by tier and document, as far as it has been read.

    A generation counts once all that began with it must have ended: the short ones end first, and a look at those
    alone would find every run to be shorter than its pilot.

    Args:
        ledger_url: the ledger.
        since_ms: parts written before this Unix time in milliseconds are of earlier runs, and of the pilot.
        prompt_versions: of this run.
        gates: are asked of a sample; None: nobody is.
    """

    def __init__(
        self, ledger_url: str, since_ms: int, prompt_versions: Sequence[str], gates: SampledGates | None = None
    ) -> None:
        self._url, self._since_ms, self._versions = ledger_url, since_ms, frozenset(prompt_versions)
        self._gates = gates
        self._columns = tuple(dict.fromkeys((*_COLUMNS, *(gates.columns if gates is not None else ()))))
        self._read: set[str] = set()
        # began_at, tier, document, tokens, cut, rejected where a gate was asked
        self._waiting: list[tuple[float, str, str, int, bool, bool | None]] = []
        self._longest_s = self._latest = 0.0
        self._counted: dict[str, dict[str, list[int]]] = {}
        self._judged: dict[str, dict[str, list[int]]] = {}
        self._levels: dict[str, int] = {}

    def load(self) -> None:
        """Get ready to ask the gates; where that can't be, nobody is asked."""
        try:
            if self._gates is not None:
                self._gates.load()
        except Exception as error:  # noqa: BLE001 - lengths are watched all the same
            logger.info("what gates reject is not watched: %s", error)
            self._gates = None

    def read(self, until: float = float("inf")) -> None:
        """Read the parts that have come, at least one of them, until this time of the monotonic clock.

        Raises:
            MillError: the store can't be read.
        """
        for _, batches in every_part(self._url, self._columns, since_ms=self._since_ms, seen=self._read):
            for batch in batches or ():
                rows = batch.select(_COLUMNS).to_pylist()
                judged = self._gates.rejected(batch) if self._gates is not None else [None] * len(rows)
                for row, is_rejected in zip(rows, judged, strict=True):
                    self._take(row, is_rejected)
            if time.monotonic() > until:
                return

    def totals(self, *, ended: bool = False) -> dict[str, Totals]:
        """What was generated, by tier.

        Args:
            ended: the run has: nothing is in flight.
        """
        horizon = float("inf") if ended else self._latest - IN_FLIGHT_TIMES * self._longest_s
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            if row[0] > horizon:
                self._waiting.append(row)
            else:
                self._count(*row[1:])
        return {
            tier: Totals(*_columns_of(documents), *_columns_of(self._judged.get(tier, {})))
            for tier, documents in self._counted.items()
            if documents
        }

    def _take(self, row: dict[str, object], is_rejected: bool | None) -> None:
        if row["prompt_version"] not in self._versions:
            return
        wall_s, finished_at = float(str(row["wall_s"])), float(str(row["finished_at"]))
        self._longest_s, self._latest = max(self._longest_s, wall_s), max(self._latest, finished_at)
        document = str(row["segment_id"]).rpartition("#")[0]
        tokens, is_cut = int(str(row["thought_tokens"])), row["closed"] != "natural"
        self._waiting.append((finished_at - wall_s, str(row["tier"]), document, tokens, is_cut, is_rejected))

    def _count(self, tier: str, document: str, tokens: int, is_cut: bool, is_rejected: bool | None) -> None:
        if is_rejected is not None:  # these are few enough to be kept, all of them
            judged = self._judged.setdefault(tier, {}).setdefault(document, [0, 0])
            judged[0] += 1
            judged[1] += is_rejected
        documents = self._counted.setdefault(tier, {})
        level = self._levels.get(tier, 0)
        if not _is_watched(document, level):
            return
        sums = documents.setdefault(document, [0, 0, 0])
        for place, value in enumerate((1, tokens, int(is_cut))):
            sums[place] += value
        if len(documents) > MAX_DOCUMENTS:
            self._levels[tier] = level + 1
            self._counted[tier] = {name: sums for name, sums in documents.items() if _is_watched(name, level + 1)}


def _columns_of(documents: Mapping[str, Sequence[int]]) -> Iterable[np.ndarray]:
    """What is counted, as an array over the documents for each of it; nothing of no documents."""
    return np.array(list(documents.values()), np.float64).T if documents else ()


def _is_watched(document: str, level: int) -> bool:
    return level == 0 or text_number(f"drift {document}") % (1 << level) == 0


def held_against_pilot(
    config: MillConfig, scored: Manifest, planner: TracePlanner, order: worker.WorkOrder, allocation: Allocation
) -> contextlib.AbstractContextManager[Any]:
    """What holds a run against its pilot for as long as it generates, where there is a pilot.

    Args:
        allocation: the plan: what an exploring pilot says of other segments than those that it gives a tier is no
            promise.

    Raises:
        RequestError: `budget.stop_if` is set, and there is none.
    """
    stop_if = config.budget.stop_if
    pilot, notes = read_pilot(config, scored)
    if pilot is None:
        if stop_if is not None and planner.models:
            said = "; ".join(notes) or "there is none"
            raise RequestError(
                f"budget.stop_if: needs a pilot of this config, whose promises the run is held against ({said}): "
                f"`thoughtmill plan CONFIG {pilot_options(goes_by_gain(config))}` makes one; or remove stop_if"
            )
        return contextlib.nullcontext()
    promises = promises_of(of_plan(pilot, allocation))
    if lacking := sorted(set(pilot.tiers) - {promise.tier for promise in promises}):
        told = logger.info if stop_if is None else logger.warning
        told("the pilot has too few documents of tier %s to tell drift", " and ".join(lacking))
    versions = list(planner.prompt_versions().values())
    generations = Generations(config.ledger_url, order.began_ms, versions, SampledGates(config, scored))
    return DriftWatch(config.output, generations, promises, stop_if, order, explored=pilot.explored)


class DriftWatch:
    """Looks for drift within a `with` block; looks once more at its end, and stops nothing then.

    Args:
        output: the run's.
        generations: what it has generated.
        promises: what its pilot promised.
        stop_if: how far off is too far; None: nothing is.
        order: the run, as its workers know it.
        explored: whether the pilot tried tiers at random.
    """

    def __init__(
        self,
        output: str,
        generations: Generations,
        promises: Sequence[Promise],
        stop_if: StopConfig | None,
        order: worker.WorkOrder,
        *,
        explored: bool = False,
    ) -> None:
        self._url = Output(output).drift
        self._generations, self._promises, self._stop_if, self._order = generations, promises, stop_if, order
        self._again = pilot_options(explored)
        self._known: dict[tuple[str, str], Drift] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thoughtmill-drift", daemon=True)

    def __enter__(self) -> DriftWatch:
        self._generations.load()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(LOOK_S)  # a store that hangs holds up nobody
        if not self._thread.is_alive():
            self._try_look(ended=True)

    def _run(self) -> None:
        pause_s = LOOK_S
        while not self._ended.wait(pause_s):
            began = time.monotonic()
            if self._try_look(ended=False):
                return
            pause_s = max(LOOK_S, (time.monotonic() - began) / MAX_SHARE)

    def _try_look(self, *, ended: bool) -> bool:
        """Whether the run was stopped. Whatever goes wrong in looking is no reason for a run to fail."""
        try:
            return self._look(ended=ended)
        except Exception as error:  # noqa: BLE001 - told, and looked again
            logger.debug("drift: %s", error)
            return False

    def _look(self, *, ended: bool) -> bool:
        self._generations.read(float("inf") if ended else time.monotonic() + LOOK_S)
        drifts = find_drifts(self._promises, self._generations.totals(ended=ended))
        for drift in drifts:
            if (drift.tier, drift.kind) not in self._known:
                logger.warning("%s", drift)
            self._known[drift.tier, drift.kind] = drift
        if drifts:
            storage.write_json(self._url, msgspec.to_builtins(list(self._known.values())))
        too_far = [drift for drift in drifts if self._stop_if is not None and is_too_far(drift, self._stop_if)]
        if ended or not too_far:
            return False
        assert self._stop_if is not None
        stop_everywhere(self._order, stopped_because(too_far[0], self._stop_if, self._again))
        return True


def is_too_far(drift: Drift, stop_if: StopConfig) -> bool:
    """Whether the run is to stop for it."""
    limit: float | None = getattr(stop_if, _limit_of(drift))
    return limit is not None and drift.off_by > limit


def _limit_of(drift: Drift) -> str:
    """The key of `stop_if` that a drift is held against."""
    return f"{drift.kind}_off_by"


def pilot_options(explored: bool) -> str:
    """What makes a pilot of that kind."""
    return "--pilot 400 --explore" if explored else "--pilot 50"


def stopped_because(drift: Drift, stop_if: StopConfig, again: str) -> str:
    """What to say of a run that was stopped; `again` makes another pilot like the one that promised."""
    name = _limit_of(drift)
    return (
        f"stopped before more is spent: {drift}, more than budget.stop_if.{name}={getattr(stop_if, name)} allows. What "
        "was generated is in the ledger and will be found there. Measure again with "
        f"`thoughtmill plan CONFIG {again}`, change the tier, or remove budget.stop_if, and run again"
    )
