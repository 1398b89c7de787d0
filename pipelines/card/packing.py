"""What the card says of the shards: how they were packed, and what their columns hold."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.card.front_matter import config_name, has_loss_mask
from pipelines.card.markdown import share
from pipelines.epochs import shards_by_epoch
from pipelines.terminal import counted
from sharding.packing.epochs import count_name
from sharding.shards.rows import has_surprisal
from sharding.storage.manifest import Manifest


def packing_rows(packed: Manifest) -> Iterator[tuple[str, str]]:
    """Rows, padding, cuts, delimiters, loss mask and tokenizer."""
    counts, config = packed.counts, packed.config["pack"]
    total = max(1, counts["rows"] * config["sequence_length"])
    shards = packed.files.get("shards", [])
    masked = f"`{config.get('loss_mask')}`, in the column `loss_mask`"
    yield "sequences", f"{counts['rows']:,} of {config['sequence_length']:,} tokens, in {counted(len(shards), 'shard')}"
    yield "bytes per token", f"{sum(entry.size_bytes for entry in shards) / total:.3f}"
    yield "padding", share(counts.get("tokens_padding", 0), total)
    yield "layout", f"`{packed.config['layout']}`"
    yield "before a thought", _text(config["thought_open"])
    yield "after a thought", _text(config["thought_close"])
    if starts := packed.facts.get("document_start_ids"):
        yield "before a document", _text(config["document_start"]) + f" as ids {starts}"
    yield "after a document", _text(config["document_end"]) + f" as ids {packed.facts['document_end_ids']}"
    yield "documents cut", _of(counts.get("documents_cut", 0), counts.get("documents", 0), "longer than a sequence")
    yield "thoughts cut", _of(counts.get("thoughts_cut", 0), counts.get("thoughts", 0), "lost their end")
    yield "thoughts without room", f"{counts.get('thoughts_dropped', 0):,}"
    yield "tokens in the loss", masked if has_loss_mask(packed) else "all but padding"
    without = counts.get("rows_without_labels", 0)
    yield "sequences without a label", _of(without, counts["rows"], "none of whose tokens counts in the loss")
    for epoch, of_epoch in shards_by_epoch(packed):
        number, thoughts = counted(len(of_epoch), "shard"), counts.get(count_name(epoch, "thoughts"), 0)
        tokens = counts.get(count_name(epoch, "tokens_thought"), 0)
        told = f"{counted(counts[count_name(epoch, 'rows')], 'sequence')} in {number}, {thoughts:,} thoughts"
        yield f"train in epoch {epoch}", f"{told} of {tokens:,} tokens; loaded as `{config_name(epoch)}`"
    yield "tokenizer", f"`{packed.config['tokenizer']}`, {packed.facts['vocab_size']:,} entries"
    if said := packed.facts.get("tokenize"):
        yield "tokens", said
    yield "tokenizer sha256", f"`{packed.facts['tokenizer_fingerprint']}`"
    for removal in packed.facts.get("removals", []):
        yield "taken down", f"{counted(removal['documents'], 'document')}, {removal['at'].partition('T')[0]}"


def column_rows(packed: Manifest) -> Iterator[tuple[str, str]]:
    """What the columns hold."""
    length = packed.config["pack"]["sequence_length"]
    yield "`input_ids`", f"{length:,} token ids; padding is id 0"
    yield "`token_type`", "of each token: 0 padding, 1 source, 2 thought, 3 delimiter"
    yield "`seq_lengths`", "tokens of each document in the row, for variable-length attention; the rest is padding"
    yield "`doc_ids`", "the document of each of these"
    place = "place of its first source token in the document: orders the pieces of one that was cut"
    yield "`source_starts`", place
    if has_surprisal(packed):
        yield "`surprisal`", "of each source token, in nats: how unexpected the scorer found it; NaN of all others"
    if has_loss_mask(packed):
        yield "`loss_mask`", "whether each token counts as one to be predicted"


def _text(text: str | None) -> str:
    return "the tokenizer's end of text" if text is None else f"`{text!r}`" if text else "nothing"


def _of(part: int, whole: int, why: str) -> str:
    return f"{part:,} ({share(part, whole)}), {why}" if part else "none"
