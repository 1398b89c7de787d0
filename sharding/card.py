"""The dataset card: README.md of the output, made from the manifests alone. The last thing the pack stage writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sharding.manifest import Manifest

SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)
"""Rows below the number → the hub's name for the size."""

REHEARSAL_NOTICE = "rehearsal: not for training"


def render(stages: Mapping[str, Manifest]) -> str:
    """The card of a run whose four manifests are given: YAML for the hub, then what a trainer needs to know."""
    packed = stages["pack"]
    sections = [
        f"# {packed.config['card']['name']}",
        _notice(packed),
        "A pretraining corpus in which hard passages are followed by generated reasoning about them. "
        "Made with thoughtmill: every token of the source was scored for difficulty, one thinking budget was spent "
        "where the difficulty is, and the traces that passed the gates stand with their documents.",
        _numbers(stages),
        _difficulty(stages["score"]),
        _generation(stages["augment"]),
        _selection(stages["select"]),
        _packing(packed),
        _loading(packed),
        _reproduce(stages),
    ]
    return f"---\n{_front_matter(packed)}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def size_category(rows: int) -> str:
    """The hub's name for a dataset of so many rows."""
    return next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>1T")


def splits(packed: Manifest) -> list[str]:
    """The splits that have shards, train first."""
    names = {entry.name.rsplit("/", 1)[-1].split("-")[0] for entry in packed.files.get("shards", [])}
    return sorted(names, key=lambda name: (name != "train", name))


def _glob(packed: Manifest, split: str) -> str:
    """A pattern for the shards of a split, their number in it: shards of another run in the folder don't match."""
    name = next(entry.name for entry in packed.files["shards"] if entry.name.startswith(f"data/{split}-"))
    return f"data/{split}-*-of-{name.rpartition('-of-')[2]}"


def amount(facts: Mapping[str, Any]) -> str:
    """A budget with its unit, from the facts of the augment stage."""
    unit = {"tokens": "thinking tokens", "dollars": "dollars", "gpu_hours": "GPU-hours"}[facts["unit"]]
    return f"{facts['target_spend']:,.{0 if facts['unit'] == 'tokens' else 2}f} {unit}"


def _front_matter(packed: Manifest) -> str:
    from huggingface_hub import DatasetCardData

    about = packed.config["card"]
    tags = ["thoughtmill", "thinking-augmented", "pretraining", "synthetic"]
    data = DatasetCardData(
        pretty_name=about["name"],
        language=list(about["language"]) or None,
        license=about["license"],
        source_datasets=list(about["source_datasets"]) or None,
        size_categories=[size_category(packed.counts["rows"])],
        task_categories=["text-generation"],
        tags=tags + ([REHEARSAL_NOTICE.split(":")[0]] if packed.rehearsal else []),
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": _glob(packed, split)} for split in splits(packed)],
            }
        ],
    )
    return data.to_yaml() + "\n"


def _notice(packed: Manifest) -> str:
    if not packed.rehearsal:
        return ""
    return (
        f"> **{REHEARSAL_NOTICE}.** A rehearsal scorer or engine made this: its difficulty or its traces are made up."
    )


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _numbers(stages: Mapping[str, Manifest]) -> str:
    packed = stages["pack"].counts
    rows = [
        ("documents", f"{stages['score'].counts['documents']:,}"),
        ("documents quarantined", f"{stages['score'].counts['quarantined']:,}"),
        ("sequences", f"{packed['rows']:,} of {stages['pack'].config['pack']['sequence_length']:,} tokens"),
        ("source tokens", f"{packed.get('tokens_source', 0):,}"),
        ("thought tokens", f"{packed.get('tokens_thought', 0):,}"),
        ("delimiter tokens", f"{packed.get('tokens_delimiter', 0):,}"),
        ("padding tokens", f"{packed.get('tokens_padding', 0):,}"),
    ]
    return "## Numbers\n\n" + _table(rows, ("what", "how many"))


def _difficulty(scored: Manifest) -> str:
    counts, config = scored.counts, scored.config["difficulty"]
    tokens = max(1, counts["source_tokens"])
    scorer = ", ".join(f"{key} {value}" for key, value in scored.facts["scorer"].items())
    return (
        "## Difficulty\n\n"
        f"Scorer: {scorer}. Mean surprisal {counts.get('surprisal_micronats', 0) / 1e6 / tokens:.3f} nats per token, "
        f"mean entropy {counts.get('entropy_micronats', 0) / 1e6 / tokens:.3f}. "
        f"{counts.get('hard_tokens', 0) / tokens:.1%} of the tokens are harder than {config['threshold_nats']} nats; "
        "a segment's difficulty is the sum of its nats above that threshold."
    )


def _generation(augmented: Manifest) -> str:
    facts = augmented.facts
    models = "\n".join(f"- `{name}`: {_facts(model)}" for name, model in facts["models"].items())
    prompts = "\n".join(f"- `{name}`: version {version}" for name, version in facts["prompts"].items())
    rows = [
        (tier["name"], f"{tier['segments']:,}", f"{tier['generations']:,}", f"{tier['planned_tokens']:,.0f}")
        for tier in facts["tiers"]
    ]
    return (
        "## Generation\n\n"
        f"Models:\n\n{models or '- none'}\n\nPrompts:\n\n{prompts or '- none'}\n\n"
        f"Decoding: {_facts(augmented.config['sampling'])}.\n\n"
        f"Budget: {amount(facts)}, spread {augmented.config['budget']['policy']}; "
        f"{facts['planned_tokens']:,.0f} thinking tokens planned, {augmented.counts['thought_tokens']:,} generated.\n\n"
        + _table(rows, ("tier", "segments", "generations", "tokens planned"))
        + "".join(f"\n\n> Warning: {warning}." for warning in facts["warnings"])
    )


def _selection(selected: Manifest) -> str:
    counts = selected.counts
    rows = [
        (name.removeprefix("rejected."), f"{number:,}")
        for name, number in sorted(counts.items())
        if name.startswith("rejected.")
    ]
    table = "\n\n" + _table(rows, ("rejected because", "candidates")) if rows else ""
    return (
        "## Selection\n\n"
        f"{counts['candidates']:,} candidates: {counts['kept']:,} kept, {counts['rejected']:,} rejected. "
        f"Value: {selected.config['select']['value']}; keep: {selected.config['select']['keep']}.{table}"
    )


def _packing(packed: Manifest) -> str:
    counts, config = packed.counts, packed.config["pack"]
    total = max(1, counts["rows"] * config["sequence_length"])
    return (
        "## Packing\n\n"
        f"Layout `{packed.config['layout']}`; thoughts stand between `{config['thought_open']!r}` and "
        f"`{config['thought_close']!r}`. Best-fit packing; {counts.get('tokens_padding', 0) / total:.2%} padding; "
        f"{counts.get('documents_cut', 0):,} documents longer than a sequence were cut, "
        f"{counts.get('thoughts_cut', 0):,} thoughts lost their end. Tokenizer `{packed.config['tokenizer']}`, "
        f"sha256 `{packed.facts['tokenizer_fingerprint']}`.\n\n"
        "Columns: `input_ids`; `token_type` (0 padding, 1 source, 2 thought, 3 delimiter); `seq_lengths`, the tokens "
        "of each document in the row, for variable-length attention; `doc_ids`; `source_starts`, the place of each "
        "item's first source token in its document."
    )


def _loading(packed: Manifest) -> str:
    split = (splits(packed) or ["train"])[0]
    return (
        "## Loading\n\n"
        "```python\n"
        "from datasets import load_dataset\n\n"
        f'rows = load_dataset("path/to/this/folder", split="{split}")\n'
        "```"
    )


def _reproduce(stages: Mapping[str, Manifest]) -> str:
    prints = "\n".join(f"- {name}: `{stage.fingerprint}`" for name, stage in stages.items())
    return (
        "## Reproduce\n\n"
        "`config.yaml` beside this card is the whole config: `thoughtmill run config.yaml`. From the same ledger it "
        f"gives the same bytes. Fingerprints of the stages:\n\n{prints}"
    )


def _facts(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in (None, "", [], {}))
