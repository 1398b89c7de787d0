"""What an export reads: a packed shard, proved to be what its manifest says while it goes by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sharding.errors import MillError
from sharding.records.rows import MaskedRow, TokenType
from sharding.records.types import FileEntry
from sharding.shards.rows import LossMask, RowBatch, loss_mask, split_of
from sharding.storage.arrow_files import checked_batches, file_buffer
from sharding.storage.hashed_file import holds

TOKEN_KINDS = (TokenType.SOURCE, TokenType.THOUGHT, TokenType.DELIMITER)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShard:
    """One shard to export, and what a writer needs to know of its corpus.

    Attributes:
        url: where the shard is.
        entry: what the pack manifest says of it.
        sequence_length: tokens of a row.
        vocab_size: entries of the vocabulary.
        tokenizer: the tokenizer's name.
        loss_mask: the policy asked for, or None.
        has_surprisal: whether it has the column `surprisal`.
    """

    url: str
    entry: FileEntry
    sequence_length: int
    vocab_size: int
    tokenizer: str
    loss_mask: LossMask | None
    has_surprisal: bool = False

    @property
    def split(self) -> str:
        return split_of(self.entry)

    @property
    def stem(self) -> str:
        """The name of its files in an export, without the ending: "train/train-00000-of-00064"."""
        return f"{self.split}/{self.entry.name.rsplit('/', 1)[-1].removesuffix('.arrow')}"

    def tokens(self, *, rows: int | None = None) -> dict[str, int]:
        """The shard's tokens by kind; with `rows`, those rows' padding too."""
        tokens = {kind.name.lower(): self.entry.tokens.get(kind.name.lower(), 0) for kind in TOKEN_KINDS}
        if rows is not None:
            tokens["padding"] = rows * self.sequence_length - sum(tokens.values())
        return tokens

    def counted(self, token_type: np.ndarray) -> np.ndarray:
        """The loss mask, bool, by the policy asked for; "all" when none was."""
        return loss_mask(token_type, self.loss_mask or "all")

    def batches(self) -> Iterator[RowBatch]:
        """The shard's rows, one batch at a time, without those that are all padding.

        Raises:
            MillError: the shard is unreadable, or its bytes, rows, lengths or token counts are not those of its
                manifest. What was written from it must not be published then.
        """
        buffer = file_buffer(self.url)
        if not holds(buffer, self.entry):
            raise MillError(f"{self.url}: its bytes are not those of its manifest: run `thoughtmill verify`")
        rows = 0
        totals = np.zeros(len(TokenType), np.int64)
        try:
            for arrow in checked_batches(buffer, kind=MaskedRow):
                batch = RowBatch.from_arrow(arrow)
                if wrong := self._wrong(batch):
                    raise MillError(f"{self.url}: {wrong}: run `thoughtmill verify`")
                rows += arrow.num_rows
                totals += np.bincount(batch.token_type.ravel(), minlength=len(TokenType))
                if len(batch.items_per_row):
                    yield batch
        except pa.ArrowException as error:
            raise MillError(f"cannot read {self.url}: {error}") from error
        if rows != self.entry.rows:
            raise MillError(f"{self.url}: {rows} rows, its manifest says {self.entry.rows}")
        counts = {kind.name.lower(): int(totals[kind]) for kind in TOKEN_KINDS}
        if counts != self.tokens():
            raise MillError(f"{self.url}: holds tokens {counts}, its manifest says {self.tokens()}")

    def _wrong(self, batch: RowBatch) -> str | None:
        """What in a batch no format can be made of."""
        if self.has_surprisal != (batch.surprisal is not None):
            return f"{'no' if self.has_surprisal else 'a'} column surprisal, its manifest says otherwise"
        if batch.input_ids.shape[1] != self.sequence_length:
            return f"rows of {batch.input_ids.shape[1]} tokens, its manifest says {self.sequence_length}"
        if batch.token_type.max(initial=0) >= len(TokenType):
            return "a token type is not known"
        if batch.input_ids.max(initial=0) >= self.vocab_size:
            return f"a token id is not below the vocabulary size {self.vocab_size}"
        if batch.item_lengths.min(initial=1) < 1:
            return "seq_lengths are not all above 0"
        if not np.array_equal(batch.token_type != TokenType.PADDING, batch.is_token()):
            return "padding is not where seq_lengths end"
        return None
