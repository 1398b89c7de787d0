"""The ways to think that `benchmarks.thinking` compares: their configs, and what each of them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from augment.ledger.reading import collapse_duplicates, read_ledger
from augment.recipes.contracting import CONTRACTION_STEP
from augment.recipes.judging import JUDGE_STEP, MATCH_STEP, is_verdict
from benchmarks.milling_ours import NOTHING_THINKS
from pipelines.config import MillConfig
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.records.types import LedgerRow, Request
from sharding.storage import manifest

SEGMENT_TOKENS = 128
MAX_TOKENS = 128
"""Of a generation; of a recipe, of all calls of a run together. With less a recipe's last step has nothing left."""

CONTINUATION_TOKENS = 64
CONTRACTION_TOKENS = 64
JUDGE_TOKENS = 48

SINGLE = "single"

JUDGE_PROMPT = """Passage:
{text}

End of passage.

A reader wrote down this thought about the passage:

{thought}

End of the thought.

Say in one short sentence what the thought explains of the passage. Then end with a line of its own that gives a \
grade from 0 (worthless or wrong) to 10 (explains what is difficult, without an error), such as "Grade: 4".
"""

MATCH_PROMPT = """Passage:
{text}

End of passage.

The first of two thoughts about the passage:

{first}

End of the first thought.

The second:

{second}

End of the second thought.

Say in one short sentence which of the two explains more of the passage. Then end with a line of its own: "Better: \
first" or "Better: second".
"""
"""Short, as the small model is: of the prompts that come with the mill it would write nothing but the beginning."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to think.

    Attributes:
        tier, select: what it says otherwise than `single`, in the tier and in the section `select`.
        only_later: a document's first segment is as with `single`.
    """

    tier: Mapping[str, Any] = field(default_factory=dict)
    select: Mapping[str, Any] = field(default_factory=dict)
    only_later: bool = False


def _judged(**judge: Any) -> Way:
    asked = {"model": "small", "max_tokens": JUDGE_TOKENS, **judge}
    return Way(tier={"samples": 2}, select={"value": "judge", "judge": asked})


WAYS: dict[str, Way] = {
    SINGLE: Way(),
    "refine": Way(tier={"recipe": "refine"}),
    "branch": Way(tier={"recipe": "branch", "drafts": 2}),
    "contraction": Way(tier={"context": "contraction"}, only_later=True),
    "retrieved": Way(tier={"context": "retrieved", "passages": 2}),
    "two": Way(tier={"samples": 2}, select={"trim": {}}),
    "judge": _judged(prompt="judge.txt"),
    "pairwise": _judged(prompt="match.txt", pairwise=True),
}
"""By their names. All but the first differ from it in one thing; the last three look at the same traces."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all ways have in common.

    Attributes:
        folder: of the source, the ledger and the outputs.
        model: generator, scorer and tokenizer.
        engine, difficulty: the rest of the model's entry, and of the section.
        segments: that think.
    """

    folder: Path
    model: str
    engine: Mapping[str, Any]
    difficulty: Mapping[str, Any]
    segments: int

    @property
    def source(self) -> Path:
        return self.folder / "source.jsonl"


def config_of(setup: Setup, name: str) -> MillConfig:
    """The mill's config: on one ledger, and all but `single` with its scores. These have to be there for `contraction`.

    The hardest segments think, the same whichever way: what contractions may take comes on top.
    """
    way, tokens = WAYS[name], setup.segments * MAX_TOKENS
    first = str(setup.folder / SINGLE)
    select: dict[str, Any] = {"value": "continuation_gain", **way.select}
    if "judge" in select:
        select["judge"] = {**select["judge"], "prompt": str(setup.folder / select["judge"]["prompt"])}
    contracting: dict[str, Any] = {}
    if way.tier.get("context") == "contraction":
        scored = manifest.require(first, "score").counts
        contracting = {"contraction_model": "small", "contraction_tokens": CONTRACTION_TOKENS}
        tokens += CONTRACTION_TOKENS * (scored["segments"] - scored["documents"])
    tier = {"name": name, "model": "small", "prompt": "brief", "max_tokens": MAX_TOKENS, **way.tier}
    retrieves = tier.get("context") == "retrieved"
    return from_mapping(
        {
            "source": {"path": str(setup.source), "id_field": "id"},
            "output": str(setup.folder / name),
            **({} if name == SINGLE else {"scored": first}),
            "ledger": {"path": str(setup.folder / "ledger")},
            "tokenizer": setup.model,
            "difficulty": {**setup.difficulty, "segment_tokens": SEGMENT_TOKENS},
            "models": {"small": {"name": setup.model, **setup.engine}},
            "budget": {
                "policy": "adaptive",
                "thinking_tokens": tokens * tier.get("samples", 1),
                "tiers": [{"name": "skip"}, tier],
                **contracting,
            },
            **({"retrieval": {"corpus": collection_config(setup).output}} if retrieves else {}),
            "closing": {"reserve_tokens": 24},
            "select": {
                "gain": {"continuation_tokens": CONTINUATION_TOKENS, "hold_back_tokens": CONTINUATION_TOKENS},
                "min_kept_share": 0,
                **select,
            },
            "pack": {"sequence_length": 1024, "num_shards": 1},
        }
    )


def collection_config(setup: Setup) -> MillConfig:
    """Of the documents that passages are found in: scored without a model, and nothing thinks."""
    return from_mapping(
        {
            "source": {"path": str(setup.folder / "collection.jsonl"), "id_field": "id"},
            "output": str(setup.folder / "collection"),
            "tokenizer": setup.model,
            "difficulty": {"scorer": "none", "segment_tokens": SEGMENT_TOKENS},
            "budget": NOTHING_THINKS,
            "pack": {"sequence_length": 1024, "num_shards": 1},
        }
    )


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What calls of one kind took: tokens of their prompts, and tokens that they generated."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


THOUGHTS, CONTRACTIONS, VERDICTS = "thoughts", "contractions", "verdicts"


def spent(config: MillConfig) -> dict[str, Spent]:
    """What a run's thoughts, contractions and verdicts took, whichever run has bought them, from the ledger."""
    augmented = manifest.require(config.output, "augment")
    urls = manifest.file_urls(config.output, augmented, "requests")
    wanted = {request.request_key for url in urls for request in storage.read_records(url, Request)}
    found: dict[str, list[LedgerRow]] = {THOUGHTS: [], CONTRACTIONS: [], VERDICTS: []}
    for row in collapse_duplicates(read_ledger(config.ledger_url)):
        if (kind := _kind(row, config, wanted)) is not None:
            found[kind].append(row)
    return {
        kind: Spent(
            calls=len(rows),
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            tokens=sum(row.thought_tokens for row in rows),
        )
        for kind, rows in found.items()
    }


def _kind(row: LedgerRow, config: MillConfig, wanted: set[str]) -> str | None:
    """What a row of the ledger is to a run; None where it is none of its calls."""
    if row.step == CONTRACTION_STEP:  # one way contracts, so all are its own
        return CONTRACTIONS if config.budget.contraction_model is not None else None
    if row.composed or row.request_key not in wanted:
        return None
    if is_verdict(row.step):
        judge = config.select.judge
        own = judge is not None and row.step.startswith(MATCH_STEP if judge.pairwise else JUDGE_STEP)
        return VERDICTS if own else None
    [tier] = [tier for tier in config.budget.tiers if not tier.skips]
    return THOUGHTS if row.sample < tier.samples else None
