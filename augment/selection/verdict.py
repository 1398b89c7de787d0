"""The verdict on a selection, for the person who pays: whether enough is kept, and whether it is worth anything. Pure.

    counts and account of `augment.selection.account` ──► check_there, shortfall, check_kept, worth

The select stage, the pilot of a plan and the summary of a run say the same by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from augment.selection.alike.repeats import NEAR_COPY, REPEATED_SHAPE
from augment.selection.candidates import NOT_ENCODABLE
from augment.selection.judging import CONTAMINATED
from augment.selection.keeping import BELOW_THRESHOLD, NOT_CHOSEN, UNVALUED
from sharding.errors import MillError

HANDFUL = 5
"""Of so few segments a share says nothing, and that none keeps a thought is no failure."""

SEGMENTS, SEGMENTS_KEPT = "segments_thought_about", "segments_with_thought"
"""Counts: segments with a candidate, and those of which at least one was kept."""

ABSENT = "generations_absent"
"""Count: samples of the requests that the ledger has no row of, each once; there where there are any."""

FOREIGN = "foreign."
"""Begins the counts of traces rejected for their language, by that language."""

REMEDIES = {
    "unclosed": "raise budget.tiers.N.max_tokens, or leave closing.enabled on",
    "too_short": "look at budget.tiers.N.prompt and min_tokens, or lower select.gates.too_short.min_bytes",
    "unprintable": "look at models.NAME; select.gates.unprintable.enabled: false lets them pass",
    "refusal": "change budget.tiers.N.prompt or the model",
    "leakage": "change budget.tiers.N.prompt or the model; a model that thinks takes models.NAME.thinking: true",
    "loop": "raise sampling.temperature, lower budget.tiers.N.max_tokens, or take a larger model",
    "verbatim": "change budget.tiers.N.prompt or the model; select.gates.verbatim.max_copied_share sets the limit",
    "off_topic": "change budget.tiers.N.prompt or the model; select.gates.off_topic.enabled: false keeps them",
    "contradiction": "take a larger model; select.gates.contradiction.enabled: false keeps them",
    REPEATED_SHAPE: "vary budget.tiers.N.prompt, or raise select.repeats.shapes_at_most",
    NEAR_COPY: "drop copies among the documents, or raise select.repeats.near_copies_at_most",
    NOT_ENCODABLE: "take a tokenizer that spells every byte: tokenizer",
    CONTAMINATED: "select.decontaminate.action: mark keeps them",
    BELOW_THRESHOLD: "lower select.min_value, or take select.keep: best",
    UNVALUED: "take select.keep: best, or give the documents more text to try traces on",
}
"""First reason of a rejection → the keys that change it."""


def check_there(counts: Mapping[str, int], failed: int, ledger_url: str) -> None:
    """Refuse a selection from less than was generated: what a store doesn't list would be lost in silence.

    Args:
        counts: of the select stage.
        failed: generations that the augment stage has given up; of no others there is no row.
        ledger_url: where the rows were read.

    Raises:
        MillError: rows are absent; says how many, and the way out.
    """
    if (absent := counts.get(ABSENT, 0)) > failed:
        raise MillError(
            f"{absent - failed:,} generations that the augment stage has made are not in {ledger_url}, as the store "
            "lists it now, and would be lost: where listings are late, run again in a minute; where parts were damaged "
            "or taken away, `thoughtmill augment CONFIG --force` makes what is not there"
        )


def shortfall(counts: Mapping[str, int], min_kept_share: float) -> str | None:
    """What to tell where too few segments keep a thought, with the main reason and the key; None where all is well.

    Args:
        counts: of the select stage, or of a pilot; those of an earlier version, without `SEGMENTS`, tell nothing.
        min_kept_share: `select.min_kept_share`.
    """
    segments, kept = counts.get(SEGMENTS, 0), counts.get(SEGMENTS_KEPT, 0)
    if segments <= HANDFUL or kept >= min_kept_share * segments:
        return None
    said = (
        f"{kept:,} of {segments:,} segments that were thought about keep a thought ({kept / segments:.0%}; "
        f"select.min_kept_share is {min_kept_share:.0%})"
    )
    return f"{said}: {reason}" if (reason := _main_reason(counts)) else said


def check_kept(counts: Mapping[str, int], min_kept_share: float, output: str) -> None:
    """Refuse a selection of which nothing is left.

    Args:
        counts, min_kept_share: see `shortfall`; a share of 0 asks for it.
        output: of the run.

    Raises:
        MillError: more than a handful of segments were thought about, and none keeps a thought.
    """
    said = shortfall(counts, min_kept_share)
    if said is not None and not counts.get(SEGMENTS_KEPT, 0):
        raise MillError(
            f"select: {said}. Nothing is lost: every generation is in the ledger, and selecting again with another "
            f"`select` section and --replace generates none. `thoughtmill inspect {output} --rejected REASON` shows "
            "them; select.min_kept_share: 0 takes a corpus without thoughts"
        )


def _main_reason(counts: Mapping[str, int]) -> str:
    """The most frequent first reason of a rejection, what it means for the config, and how many it concerns."""
    reasons = {
        name.removeprefix("rejected."): count
        for name, count in counts.items()
        if name.startswith("rejected.") and name != f"rejected.{NOT_CHOSEN}"
    }
    if not reasons:
        return ""
    reason, count = max(reasons.items(), key=lambda item: (item[1], item[0]))
    way_out = language_advice(counts) if reason == "language" else REMEDIES.get(reason, f"see select.gates.{reason}")
    return f"{count:,} of {counts['candidates']:,} traces are rejected as {reason}: {way_out}"


def language_advice(counts: Mapping[str, int]) -> str:
    """What to set where traces are in another language than their segments."""
    foreign = {name.removeprefix(FOREIGN): count for name, count in counts.items() if name.startswith(FOREIGN)}
    if not foreign:
        return "name the languages that may be thought in: select.gates.language.allowed"
    language = max(foreign.items(), key=lambda item: (item[1], item[0]))[0]
    return (
        f"they are in another language than their segment, mostly {language}: if they may be, set "
        f"select.gates.language.allowed: [{language}]; else ask for the segment's language in budget.tiers.N.prompt"
    )


def worth(account: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, bool]]:
    """Of tiers whose traces are worth less than nothing, or that nobody knows the worth of: what to tell, whether bad.

    Args:
        account: rows of `split_account`.
    """
    for row in account:
        gains = row.get("gains") or {}
        if (found := gains.get("heldout_first")) is None:
            if row["candidates"]:
                yield f"{row['tier']}: unmeasured", False
        elif (interval := found["interval95"]) is not None and interval[1] < 0:
            yield (
                (
                    f"the traces of tier {row['tier']} make what follows them less likely: {found['mean']:+.2f} "
                    f"nats per segment beyond control traces ({interval[0]:+.2f} to {interval[1]:+.2f}): try another "
                    "prompt or model, or leave the tier out"
                ),
                True,
            )
