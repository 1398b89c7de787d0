"""Which rows a rank reads, in which order, and where it is: `PackedSampler`. In the main process of a training loop.

    seed, epoch ─► order of the epoch ─► the ranks take turns ─► numbers of rows ─► PackedDataset, in any process

torch copies a dataset into its workers when a loop begins, and what is set on it afterwards never arrives there. So the
position is here alone, and a loop over the sampler (which is what a DataLoader does) carries its own.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Literal, get_args

from sharding.errors import RequestError
from sharding.hashing import Purpose, hashed
from sharding.shards.dataset import PackedDataset

Uneven = Literal["pad", "drop"]


class PackedSampler:
    """The rows of one rank, an epoch for each loop: a `sampler` for DataLoader and torchdata's StatefulDataLoader.

    The order is a keyed hash of seed and epoch: shards are shuffled, then the record batches in a shard, then the rows
    in a batch, so that reading stays sequential within 2 MiB. Rows were shuffled over the corpus when they were packed.
    In it the ranks take turns, and all get equally many rows, or a collective would wait for ever.

    Of a corpus with another trace each epoch (`pack.trace_per_epoch`) an epoch's rows are those of its own traces.

    Each loop is one epoch: the first is epoch 0, the next epoch 1, whether or not the one before was read to its end.
    `set_epoch` names another.

    Args:
        dataset: what the rows are of.
        rank: this process among those that share the split; with `world_size` absent: what torch.distributed says
            where it is initialised, else 0 of 1.
        world_size: how many they are.
        seed: key of the order.
        shuffle: off: every epoch in the order of the shards.
        uneven: where the ranks don't divide the rows: "pad" repeats the first rows of the epoch's order, so that none
            is missed; "drop" leaves out the last, fewer than ranks, so that none is seen twice.

    Raises:
        RequestError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        uneven: Uneven = "pad",
    ) -> None:
        if (rank is None) != (world_size is None):
            raise RequestError("rank, world_size: give both or neither")
        rank, world_size = _distributed() if rank is None or world_size is None else (rank, world_size)
        if not 0 <= rank < world_size:
            raise RequestError(f"rank: {rank} is not one of 0 to world_size - 1 = {world_size - 1}")
        if uneven not in get_args(Uneven):
            raise RequestError(f"uneven: {uneven!r} is not one of {', '.join(get_args(Uneven))}")
        self.dataset, self.rank, self.world_size = dataset, rank, world_size
        self.seed, self.shuffle, self.uneven = seed, shuffle, uneven
        self._next = (0, 0)  # epoch and row where the next loop begins
        self._resumed = False  # whether that is a state's and no loop has taken it up
        self._loop: tuple[int, int] | None = None  # where the last loop began

    def __len__(self) -> int:
        """Rows that the next loop gives this rank."""
        return self._rows_from(self._next[1])

    def __iter__(self) -> EpochIterator:
        return EpochIterator(self)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next loop is. A place within it that was resumed stays.

        Raises:
            RequestError: there is no such epoch, or it is not the one that was resumed.
        """
        epoch = _whole("epoch", epoch)
        if self._resumed and epoch != self._next[0]:
            raise RequestError(
                f"epoch: {epoch} is not the epoch {self._next[0]} of the state that was resumed: begin the loop over "
                'epochs at state["epoch"]'
            )
        if not self._resumed:
            self._next = (epoch, 0)

    def state_after(self, rows_taken: int) -> dict[str, Any]:
        """Where the epoch is once this rank was trained on so many rows of the loop under way, as JSON values.

        Behind a DataLoader, whose workers read ahead, only the trainer knows how many: count the rows of its batches.
        (StatefulDataLoader counts by itself: use its `state_dict`.) The same on every rank that took as many rows, and
        good for any number of ranks.

        Args:
            rows_taken: rows of this rank since the loop began; 0 before any.

        Raises:
            RequestError: the loop has not so many.
        """
        epoch, begun = self._loop or self._next
        most = self._rows_from(begun) if self._loop else 0
        taken = _whole("rows_taken", rows_taken)
        if taken > most:
            raise RequestError(f"rows_taken: {taken}, and the loop over epoch {epoch} has {most} rows for this rank")
        if self._loop and taken == most:
            return self._state(epoch + 1, 0)
        return self._state(epoch, begun + taken * self.world_size)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Begin the next loop where `state_after` was called; before any loop has begun.

        Raises:
            RequestError: the state is of another corpus, split, seed or order, or of no row that exists; or a loop has
                begun, which would read on from where it was.
        """
        if self._loop is not None:
            raise RequestError(
                "resume: a loop over this sampler has begun and would go on from where it was: resume a new sampler, "
                "and begin the loop behind it"
            )
        self._restore(state)

    def _state(self, epoch: int, row: int) -> dict[str, Any]:
        return {"epoch": epoch, "row": row, **self._order_of()}

    def _order_of(self) -> dict[str, Any]:
        """What an order follows from: a state is good wherever all of it is the same."""
        dataset = self.dataset
        labels = dataset.loss_mask if dataset.labelled_only else None
        return {
            "corpus": dataset.fingerprint, "split": dataset.split, "rows": dataset.rows, "labelled_only": labels,
            "seed": self.seed, "shuffle": self.shuffle,
        }  # fmt: skip

    def _restore(self, state: Mapping[str, Any]) -> None:
        for key, here in self._order_of().items():
            if key not in state or state[key] != here:
                raise RequestError(f"{key}: the state says {state.get(key)!r}, this sampler has {here!r}")
        epoch, row = (_whole(key, state.get(key)) for key in ("epoch", "row"))
        if row > self.dataset.rows:
            raise RequestError(f"row: the state says {row}, and an epoch has {self.dataset.rows} rows")
        self._next, self._resumed = (epoch, row), True

    def _begin(self) -> tuple[int, int]:
        """Where a loop that begins now is; the next one is an epoch further."""
        self._loop = self._next
        self._next, self._resumed = (self._loop[0] + 1, 0), False
        return self._loop

    def _rows_from(self, row: int) -> int:
        """Rows of this rank from a row of an epoch, over all ranks, to the epoch's end."""
        left = self.dataset.rows - row
        return left // self.world_size if self.uneven == "drop" else -(-left // self.world_size)


class EpochIterator:
    """One loop over a `PackedSampler`; its `state_dict` is for torchdata, which asks for it at the right moments.

    Nothing is decided before the first row is asked for: a sampler may be resumed after a DataLoader was made.
    """

    def __init__(self, sampler: PackedSampler) -> None:
        self._sampler = sampler
        self._begun: tuple[int, int] | None = None
        self._taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        sampler, rows = self._sampler, self._sampler.dataset.rows
        if self._begun is None:
            self._begun = sampler._begin()
            self._order = EpochOrder(sampler.dataset, sampler.seed if sampler.shuffle else None, self._begun[0])
        if self._taken >= sampler._rows_from(self._begun[1]):
            raise StopIteration
        place = self._begun[1] + self._taken * sampler.world_size + sampler.rank
        self._taken += 1
        return self._order.row_at(place % rows)  # behind the last row the first are repeated

    def state_dict(self) -> dict[str, Any]:
        """Where this loop is; at its end it says so, and a loop from there is empty."""
        sampler = self._sampler
        epoch, row = self._begun or sampler._next
        finished = self._begun is not None and self._taken == sampler._rows_from(row)
        return sampler._state(epoch, sampler.dataset.rows if finished else row + self._taken * sampler.world_size)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, before the loop has begun.

        Raises:
            RequestError: see `PackedSampler.resume`; or the loop has begun.
        """
        if self._begun is not None:
            raise RequestError("load_state_dict: this loop has begun: load the state into one that has not")
        self._sampler._restore(state)
        if self._sampler._next[1] == self._sampler.dataset.rows:
            # At its end already: torchdata makes the loop behind it without asking this one for a row.
            self._begun = self._sampler._begin()


class EpochOrder:
    """The rows of a dataset in the order of one epoch.

    Args:
        dataset: whose rows.
        seed: key of the order; None: the order of the shards.
        epoch: which one.
    """

    def __init__(self, dataset: PackedDataset, seed: int | None, epoch: int) -> None:
        self._dataset, self._key = dataset, None if seed is None else (seed, epoch)
        # Numbered within the epoch: where traces differ, its shards stand behind those of the epochs before.
        self._first = dataset.shards_of(epoch)
        sizes = [dataset.rows_of_shards[shard] for shard in self._first]
        self._first_rows = list(accumulate(sizes, initial=epoch % dataset.epochs * dataset.rows))
        self._shards = self._permutation(len(sizes))
        self._begins = list(accumulate((sizes[shard] for shard in self._shards), initial=0))
        self._open: tuple[int, list[int]] = (-1, [])

    def row_at(self, place: int) -> int:
        """The number of the row at a place of the order, from 0."""
        at = bisect_right(self._begins, place) - 1
        shard = self._shards[at]
        found = self._open  # once: another thread may put another shard there
        if found[0] != shard:
            found = self._open = (shard, self._rows_in(shard))
            self._dataset.read_ahead([self._first[following] for following in self._shards[at + 1 :]])
        return self._first_rows[shard] + found[1][place - self._begins[at]]

    def _rows_in(self, shard: int) -> list[int]:
        """The rows of a shard, from 0: its record batches in an order, and in each its rows."""
        sizes = self._dataset.rows_of_batches(self._first[shard])
        begins = list(accumulate(sizes, initial=0))
        batches = self._permutation(len(sizes), shard)
        return [begins[batch] + row for batch in batches for row in self._permutation(sizes[batch], shard, batch)]

    def _permutation(self, length: int, *key: int) -> list[int]:
        return list(range(length)) if self._key is None else permutation(length, *self._key, *key)


def permutation(length: int, *key: int) -> list[int]:
    """The numbers below `length` in an order that follows from the key alone, on every machine and version."""
    prefix = ":".join(map(str, key))
    return sorted(range(length), key=lambda part: (hashed(Purpose.READING, f"{prefix}:{part}"), part))


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RequestError(f"{name}: {value!r} is not a whole number from 0 up")
    return value


def _distributed() -> tuple[int, int]:
    """This process's rank and how many there are, where torch.distributed knows; torch is not imported for it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return int(distributed.get_rank()), int(distributed.get_world_size())
