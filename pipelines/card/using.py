"""The sections that a trainer needs: numbers, packing, columns, loading, limits, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.card.front_matter import has_loss_mask, splits
from pipelines.card.markdown import section, share, table
from sharding.storage.manifest import STAGES, Manifest

REHEARSAL_NOTICE = "rehearsal: not for training"


def notice(packed: Manifest) -> str:
    """The warning at the top of a rehearsal's card."""
    if not packed.rehearsal:
        return ""
    return (
        f"> **{REHEARSAL_NOTICE}.** A rehearsal scorer or engine made this: its difficulty or its traces are made up."
    )


def numbers(stages: Mapping[str, Manifest]) -> str:
    """How much there is of everything."""
    scored, packed = stages["score"].counts, stages["pack"].counts
    rows = [
        ("documents", scored["documents"]),
        ("documents left plain, without thoughts", packed.get("documents_raw", 0)),
        ("documents left out: overlap with a benchmark", packed.get("documents_contaminated", 0)),
        ("documents left out: weight of their source", packed.get("documents_left_out", 0)),
        ("copies beyond the first", packed.get("document_copies", 0)),
        ("thoughts", packed.get("thoughts", 0)),
        ("source tokens", packed.get("tokens_source", 0)),
        ("thought tokens", packed.get("tokens_thought", 0)),
        ("delimiter tokens", packed.get("tokens_delimiter", 0)),
        ("padding tokens", packed.get("tokens_padding", 0)),
        ("sequences left out to meet a number of rows", packed.get("rows_left_out", 0)),
        *((f"documents in {split}", packed.get(f"documents_{split}", 0)) for split in splits(stages["pack"])),
    ]
    always = ("documents", "thoughts", "source tokens", "thought tokens")
    return section(
        "Numbers",
        table([(name, f"{number:,}") for name, number in rows if number or name in always], ("what", "how many")),
    )


def packing(packed: Manifest) -> str:
    """Rows, padding, cuts, delimiters, loss mask and tokenizer."""
    counts, config = packed.counts, packed.config["pack"]
    total = max(1, counts["rows"] * config["sequence_length"])
    shards = packed.files.get("shards", [])
    facts = [
        ("sequences", f"{counts['rows']:,} of {config['sequence_length']:,} tokens, in {len(shards):,} shards"),
        ("bytes per token", f"{sum(entry.size_bytes for entry in shards) / total:.3f}"),
        ("padding", share(counts.get("tokens_padding", 0), total)),
        ("layout", f"`{packed.config['layout']}`"),
        ("before a thought", _text(config["thought_open"])),
        ("after a thought", _text(config["thought_close"])),
        ("after a document", _text(config["document_end"]) + f" as ids {packed.facts['document_end_ids']}"),
        ("documents cut", _of(counts.get("documents_cut", 0), counts.get("documents", 0), "longer than a sequence")),
        ("thoughts cut", _of(counts.get("thoughts_cut", 0), counts.get("thoughts", 0), "lost their end")),
        ("thoughts without room", f"{counts.get('thoughts_dropped', 0):,}"),
        ("tokens in the loss", _loss(packed)),
        ("tokenizer", f"`{packed.config['tokenizer']}`, {packed.facts['vocab_size']:,} entries"),
        ("tokenizer sha256", f"`{packed.facts['tokenizer_fingerprint']}`"),
    ]
    return section(
        "Packing",
        "Best-fit: a document with its thoughts is one item and is never torn while it fits in a sequence. The "
        "sequences are shuffled.",
        table(facts, ("what", "how")),
    )


def _text(text: str | None) -> str:
    return "the tokenizer's end of text" if text is None else f"`{text!r}`" if text else "nothing"


def _of(part: int, whole: int, why: str) -> str:
    return f"{part:,} ({share(part, whole)}), {why}" if part else "none"


def _loss(packed: Manifest) -> str:
    policy = packed.config["pack"].get("loss_mask", "all")
    return f"`{policy}`, in the column `loss_mask`" if has_loss_mask(packed) else "all but padding"


def columns(packed: Manifest) -> str:
    """What the columns hold."""
    length = packed.config["pack"]["sequence_length"]
    rows = [
        ("`input_ids`", f"{length:,} token ids; padding is id 0"),
        ("`token_type`", "of each token: 0 padding, 1 source, 2 thought, 3 delimiter"),
        ("`seq_lengths`", "tokens of each document in the row, for variable-length attention; the rest is padding"),
        ("`doc_ids`", "the document of each of these"),
        ("`source_starts`", "place of its first source token in the document: orders the pieces of one that was cut"),
    ]
    if has_loss_mask(packed):
        rows.append(("`loss_mask`", "whether each token counts as one to be predicted"))
    return section("Columns", table(rows, ("column", "what it holds")))


def loading(packed: Manifest) -> str:
    """How to open the corpus."""
    split = (splits(packed) or ["train"])[0]
    return section(
        "Loading",
        "```python\n"
        "from datasets import load_dataset\n\n"
        f'rows = load_dataset("path/to/this/folder", split="{split}")  # streaming=True works as well\n'
        "```",
        "In PyTorch, with labels, positions and exact resumption:",
        "```python\n"
        "from sharding.shards.dataset import PackedDataset\n\n"
        f'rows = PackedDataset("path/to/this/folder", "{split}", rank=0, world_size=1)\n'
        "```",
        "`thoughtmill export` writes the same sequences for Megatron, nanotron, MosaicML Streaming, OLMo-core and TRL; "
        "`thoughtmill verify --deep` checks every bit.",
    )


def limits(stages: Mapping[str, Manifest]) -> str:
    """What whoever trains on this should know."""
    packed, augmented, selected = stages["pack"], stages["augment"], stages["select"]
    models = ", ".join(f"`{model['name']}`" for model in augmented.facts["models"].values())
    license_ = packed.config["card"].get("generator_license")
    lines = [
        f"**{REHEARSAL_NOTICE}**: difficulty or traces are made up." if packed.rehearsal else "",
        "Thoughts are generated text: they may be wrong, and they carry the biases of their generators.",
        f"The thoughts were written by {models}. "
        + (
            f"Its licence: {license_}; what that licence says of outputs holds for them."
            if license_
            else "What the licence of the generator says of its outputs is not stated here: read it before you share."
        )
        if models
        else "",
        "" if selected.facts.get("decontamination") else "The corpus was not compared with any benchmark.",
        *(f"{warning[0].upper()}{warning[1:]}." for warning in augmented.facts["warnings"]),
    ]
    return section("Limits", "\n".join(f"- {line}" for line in lines if line))


def reproduce(stages: Mapping[str, Manifest]) -> str:
    """Config, versions, command."""
    versions: dict[str, str] = stages["pack"].facts.get("versions", {})
    prints = [(name, f"`{stages[name].fingerprint}`") for name in STAGES]
    return section(
        "Reproduce",
        "`config.yaml` beside this card is the whole config. From the same ledger of generations it gives the same "
        "bytes:",
        "```bash\nthoughtmill run config.yaml\n```",
        table(prints, ("stage", "fingerprint of config and inputs")),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "." if versions else "",
    )
