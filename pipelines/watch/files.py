"""The small JSON files by which a run tells others of itself: its plan and its progress. Read by status and report.

They lie in outputs, so anyone may have written them: what is in them is declared here and nowhere taken on trust.
"""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Any, Literal

import msgspec
from fsspec.implementations.local import LocalFileSystem

from difficulty.budget.tiers import Unit
from sharding import storage
from sharding.errors import MillError
from sharding.storage.json_files import MAX_BYTES, Number, read_json
from sharding.storage.output import Output
from sharding.waits import Wait

MAX_NAMES = 256
"""Models, prompts and tiers of a plan at most: what is looked for in a ledger is put together of them."""

_BESIDE = re.compile(r"((\.\./){0,8}(?!\.\.(/|$))[^/]+(/(?!\.\.(/|$))[^/]+){0,8})?")
"""Up first, and then down."""

_FEW = msgspec.Meta(max_length=MAX_NAMES)
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Above = Annotated[float, msgspec.Meta(gt=0, le=1e24)]


class PlannedTier(msgspec.Struct):
    """A tier that thinks, and what it is expected to ask for."""

    model: str | None
    generations: Number
    planned_tokens: Number
    models: list[str] = []


class PlannedModel(msgspec.Struct):
    """A model, as the ledger names it, and its price."""

    name: str
    revision: str
    engine: str
    dollars_per_million_tokens: Number | None = None
    tokens_per_gpu_second: _Above | None = None


class Plan(msgspec.Struct):
    """`plan.json`: what is to be made, by what, at which price.

    Attributes:
        ledger: the folder of the ledger, a URL or the path on the machine that generated.
        ledger_beside: its path from the output, where the two move together; see `ledger_beside`.
    """

    ledger: str
    generations: Number
    planned_tokens: Number
    target: Number
    unit: Unit
    tiers: Annotated[dict[str, PlannedTier], _FEW]
    models: Annotated[dict[str, PlannedModel], _FEW]
    prompts: Annotated[dict[str, str], _FEW]
    rehearsal: bool
    warnings: list[str] = []
    beside: list[str] = []
    """Keys of the requests that an exploring pilot made and this plan doesn't."""
    ledger_beside: str = ""


class Generation(msgspec.Struct):
    """What `status.read` says of the generations of a run."""

    generations: int
    generations_planned: Number
    thought_tokens: Number
    thought_tokens_planned: Number
    unit: Unit
    spent: Number | None
    budget: Number | None
    dollars: Number | None
    gpu_hours: Number | None
    processes: int
    in_flight: int
    waiting: int
    failed: int
    tokens_per_second: Number | None
    seconds_left: Number | None
    seconds_since_last: Number | None
    waits: list[Wait] = []


class Snapshot(msgspec.Struct):
    """`progress.json`: what a run is doing."""

    stage: str
    at: Number
    elapsed_s: Number
    counts: dict[str, _Count]
    run: str = ""
    tokens_per_second: Number | None = None
    generation: Generation | None = None
    waits: list[Wait] = []
    warning: str | None = None


Kind = Literal["length", "cut", "rejected"]

KINDS: dict[Kind, str] = {
    "length": "tokens of a trace",
    "cut": "share of traces that reach the cap before they have come to an end",
    "rejected": "share of traces that a gate rejects",
}
"""What is compared, and what it is."""


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What is no longer as promised.

    Attributes:
        tier, kind: of which traces, and what of them: see `KINDS`.
        promised: the pilot's mean.
        measured: the run's.
        off_by: how far they are apart at least, whatever chance did: tokens as a share of the promised ones; a share as
            such. Above 0.
        generations, documents: what the run's mean is of.
    """

    tier: str
    kind: Kind
    promised: Number
    measured: Number
    off_by: Number
    generations: _Count
    documents: _Count

    def __str__(self) -> str:
        if self.kind == "length":
            values = f"{self.measured:,.0f} tokens long on average, and the pilot promised {self.promised:,.0f}"
            least = f"{self.off_by:.0%}"
        else:
            what = "cut at their cap" if self.kind == "cut" else "rejected by a gate"
            values = f"{what} in {self.measured:.1%} of cases, and the pilot promised {self.promised:.1%}"
            least = f"{100 * self.off_by:.1f} points"
        return (
            f"tier {self.tier}: after {self.generations:,} generations of {self.documents:,} documents traces are "
            f"{values}; beyond chance that is off by {least} at least"
        )


def ledger_beside(output: str, ledger_url: str) -> str:
    """The path of a ledger from an output that it moves along with; "" where it doesn't.

    It does where it lies within the output, or beside it, or beside a folder that the output lies in: as an arm's does,
    which shares the ledger of its run.
    """
    output, ledger = absolute(output), absolute(ledger_url)
    above = posixpath.dirname(ledger) + "/"
    if ledger.startswith(f"{output}/"):
        return ledger.removeprefix(f"{output}/")
    if not output.startswith(above) or above in ("/", "//"):
        return ""
    return "../" * len(output.removeprefix(above).split("/")) + posixpath.basename(ledger)


def absolute(url: str) -> str:
    """A URL as it is, a local path from the root: what a file of an output says of a place, for readers elsewhere."""
    fs, path = storage.filesystem(url)
    return (path if isinstance(fs, LocalFileSystem) else url).rstrip("/")


def _ledger_of(plan: Plan, output: str) -> str:
    """Where the ledger is for who reads the output where it is now."""
    places = [plan.ledger]
    if plan.ledger_beside:
        folder, rest = absolute(output), plan.ledger_beside
        while rest.startswith("../"):
            folder, rest = posixpath.dirname(folder), rest.removeprefix("../")
        places.insert(0, storage.join(folder, rest))
    elif "://" not in plan.ledger and not plan.ledger.startswith("/"):
        places.append(Output(output).ledger)  # an earlier version wrote the path as the config has it
    return next((place for place in places if storage.list_names(place)), places[0])


def read_plan(output: str) -> dict[str, Any] | None:
    """The plan of a run's generations as JSON values, None where there is none; `ledger` is where it is now.

    Raises:
        MillError: it is something else, or its ledger is in no store that is read.
    """
    url = Output(output).plan
    if not storage.exists(url):
        return None
    plan = read_json(url, Plan, "a plan", MAX_BYTES)
    storage.foreign(plan.ledger, url)
    if not _BESIDE.fullmatch(plan.ledger_beside):
        raise MillError(f"{url} says that its ledger is at {plan.ledger_beside[:200]!r}, which is no place beside it")
    return msgspec.to_builtins(plan) | {"ledger": _ledger_of(plan, output)}


def read_snapshot(output: str) -> dict[str, Any]:
    """The last snapshot of a run as JSON values.

    Raises:
        MillError: there is none, or it is something else.
    """
    return msgspec.to_builtins(read_json(Output(output).progress, Snapshot, "a snapshot of a run"))


def read_drifts(output: str) -> list[Drift]:
    """What has drifted in the run that generated last; nothing where no run has told.

    Raises:
        MillError: the file is something else.
    """
    url = Output(output).drift
    return read_json(url, list[Drift], "what has drifted") if storage.exists(url) else []
