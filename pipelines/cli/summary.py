"""What a finished run comes to, for the person who ran it: read from the four manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from augment.selection.account import in_words
from augment.selection.alike.diversity import DiversityConfig, cautions
from augment.selection.verdict import shortfall, worth
from pipelines import report
from pipelines.card import generation
from pipelines.card.facts import REHEARSAL_NOTICE
from pipelines.delivered import deliveries_of, read_stages
from pipelines.documents.quarantine import barren_files
from pipelines.terminal import counted
from pipelines.watch.files import read_drifts
from sharding.storage import manifest
from sharding.storage.output import Output


def render(output: str, min_kept_share: float = 0.0, diversity: DiversityConfig | None = None) -> Group:
    """The summary of a finished run, as something rich prints.

    Args:
        output: of the run.
        min_kept_share: `select.min_kept_share`; fewer segments with a thought are a warning.
        diversity: `select.diversity`; thoughts that are more alike are one. Its defaults when absent.
    """
    for stage in manifest.STAGES:
        manifest.require(output, stage)
    stages = {stage: made for stage, made in read_stages(output).items() if made is not None}
    scored, augmented, selected, packed = (stages[stage] for stage in manifest.STAGES)
    tokens = max(1, scored.counts["source_tokens"])
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    counts = scored.counts
    facts.add_row(
        "documents", f"{counts['documents']:,} in {counted(counts['segments'], 'segment')}{_not_taken(counts)}"
    )
    if later := deliveries_of(packed):
        joined = sum(delivery.told["score/documents"] for delivery in later)
        facts.add_row("", f"{joined:,} of them in {counted(len(later), 'later delivery')}")
    for warning in barren_files(scored):
        facts.add_row("warning", Text(warning, "yellow"))
    if further := generation.further_round(augmented):
        facts.add_row("round", further)
    facts.add_row("source tokens", f"{counts['source_tokens']:,}")
    facts.add_row(
        "difficulty",
        f"mean {counts.get('surprisal_micronats', 0) / 1e6 / tokens:.2f} nats per token; "
        f"{counts.get('hard_tokens', 0) / tokens:.0%} of the tokens above "
        f"{scored.config['difficulty']['threshold_nats']} nats",
    )
    facts.add_row("segments per tier", ", ".join(f"{t['name']} {t['segments']:,}" for t in augmented.facts["tiers"]))
    facts.add_row(
        "thinking tokens",
        f"{augmented.facts['planned_tokens']:,.0f} planned for a budget of {generation.amount(augmented.facts)}; "
        f"{augmented.counts.get('thought_tokens', 0):,} generated; "
        f"{packed.counts.get('tokens_thought', 0):,} training tokens in the shards",
    )
    if read := selected.counts.get("prompt_tokens", 0):
        facts.add_row("", f"{read:,} tokens of prompts were read for the traces, those of all calls together")
    if contracted := generation.contraction(augmented):
        facts.add_row("contractions", contracted)
    if compared := generation.contexts(augmented, selected):
        said = [
            f"{name}: shows {shows}"
            + (f", {length} tokens of prompts for a trace" if length else "")
            + (f", gain {gain}" if gain else "")
            for name, shows, length, gain in compared
        ]
        facts.add_row("contexts", "; ".join(said))
    if forecast := generation.forecast(augmented):
        facts.add_row("", forecast)
    if promised := generation.expected_gain(augmented.facts):
        facts.add_row("expected gain", promised)
    facts.add_row(
        "traces",
        f"{selected.counts['kept']:,} kept of {selected.counts['candidates']:,}"
        + (f"; rejected: {_reasons(selected.counts, 'rejected.')}" if selected.counts["rejected"] else ""),
    )
    if worths := _gains(selected):
        facts.add_row("worth", worths)
    if left_out := _left_out(packed.counts):
        facts.add_row("not in the corpus", left_out)
    shards = packed.files.get("shards", [])
    total = max(1, packed.counts["rows"] * packed.config["pack"]["sequence_length"])
    facts.add_row(
        "shards",
        f"{counted(len(shards), 'file')} with {counted(packed.counts['rows'], 'sequence')} of "
        f"{packed.config['pack']['sequence_length']:,} "
        f"tokens, {sum(s.size_bytes for s in shards) / 1e6:,.2f} MB, "
        f"{packed.counts.get('tokens_padding', 0) / total:.1%} padding; "
        f"{_cut(packed.counts.get('documents_cut', 0))}",
    )
    if of_epochs := packed.files.get("epoch_shards", []):
        others = f"{counted(len(of_epochs), 'file')} more, {sum(s.size_bytes for s in of_epochs) / 1e6:,.2f} MB"
        facts.add_row("", f"{others}, with other traces for {packed.config['pack']['trace_per_epoch']} epochs")
    facts.add_row("speed", _speed(stages))
    told = (*augmented.facts["warnings"], *map(str, read_drifts(output)), *selected.facts.get("warnings", ()))
    for warning in (*told, *selection_warnings(selected, min_kept_share, diversity)):
        facts.add_row("warning", Text(warning, "yellow"))
    if packed.rehearsal:
        facts.add_row("note", Text(REHEARSAL_NOTICE, "yellow"))
    pages = [(Output(output).card, "the dataset card")]
    if report.is_there(output):
        pages.insert(0, (report.report_url(output), "figures and documents to read, in a browser"))
    for number, (url, about) in enumerate(pages):
        facts.add_row("" if number else "look at", f"{url} ({about})")
    facts.add_row("", f'load_dataset("{output}", split="train")')
    facts.add_row("", f"thoughtmill verify {output}")
    if counts["quarantined"]:
        facts.add_row("", f"thoughtmill inspect {output} --quarantined")
    return Group("", facts)


def _cut(documents: int) -> str:
    was = "was" if documents == 1 else "were"
    return f"{counted(documents, 'document')} longer than a sequence {was} cut"


def _not_taken(counts: dict[str, int]) -> str:
    """Which records became no document, and which are copies."""
    said = ""
    if counts["quarantined"]:
        said += f"; {counts['quarantined']:,} quarantined ({_reasons(counts, 'quarantined.')})"
    if copies := counts.get("documents_duplicate", 0):
        dropped = counts.get("duplicates_dropped", 0)
        said += f"; {copies:,} exact copies, {f'{dropped:,} dropped' if dropped else 'all kept'}"
    if near := counts.get("documents_near_copy", 0):
        dropped = counts.get("near_copies_dropped", 0)
        said += f"; {near:,} near-copies, {f'{dropped:,} dropped' if dropped else 'all kept, in one split each'}"
    return said


def _reasons(counts: dict[str, int], prefix: str) -> str:
    return ", ".join(
        f"{name.removeprefix(prefix)} {n:,}" for name, n in sorted(counts.items()) if name.startswith(prefix)
    )


def _gains(selected: manifest.Manifest) -> str:
    """What thoughts are worth on text that their generators did not see, by tier, with 95% intervals."""
    account = selected.facts.get("account") or []
    rows = [row for row in account if row.get("gains")]
    unmeasured = [said for said, is_bad in worth(account) if not is_bad]
    return "; ".join([*(_tier_gains(row["tier"], row["gains"]) for row in rows), *unmeasured])


def selection_warnings(
    selected: manifest.Manifest, min_kept_share: float, diversity: DiversityConfig | None = None
) -> list[str]:
    """That too few segments keep a thought, and which tiers are worth less than nothing or say the same all over again.

    Of made-up traces neither worth nor diversity is told.
    """
    short = shortfall(selected.counts, min_kept_share)
    bad = [said for said, is_bad in worth(selected.facts.get("account") or []) if is_bad and not selected.rehearsal]
    alike = (
        [] if selected.rehearsal else list(cautions(selected.facts.get("diversity"), diversity or DiversityConfig()))
    )
    return [*([short] if short else []), *bad, *alike]


def _tier_gains(tier: str, gains: Mapping[str, Any]) -> str:
    said = f"{tier}: {in_words(gains['heldout_first'])} nats a segment beyond control traces"
    if "heldout_choice" in gains:
        said += f", choosing adds {in_words(gains['heldout_choice'])}"
    return f"{said}; null {in_words(gains['null_first'])}" if "null_first" in gains else said


def _left_out(counts: dict[str, int]) -> str:
    """What was scored and is in no shard, and why."""
    reasons = (
        ("documents_contaminated", "documents that overlap with a benchmark"),
        ("documents_left_out", "documents by the weight of their source"),
        ("rows_left_out", "sequences beyond pack.max_rows"),
    )
    return ", ".join(f"{counts[name]:,} {why}" for name, why in reasons if counts.get(name))


def _speed(stages: dict[str, manifest.Manifest]) -> str:
    scored, augmented = stages["score"], stages["augment"]
    parts = [f"scoring {scored.counts['source_tokens'] / max(scored.elapsed_s, 1e-3):,.0f} source tokens/s"]
    written, seconds = augmented.counts.get("thought_tokens_now", 0), augmented.elapsed_s
    if written:
        parts.append(f"generation {written / max(seconds, 1e-3):,.0f} tokens/s, start of the engine included")
    parts.append(f"{sum(stage.elapsed_s for stage in stages.values()):,.0f} s in all")
    return "; ".join(parts)
