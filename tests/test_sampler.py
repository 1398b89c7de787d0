"""`shards.sampler`: every row once over ranks and epochs, equal steps, and states that are exact in torch's loaders."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sharding.errors import RequestError
from sharding.shards.dataset import PackedDataset, collate
from sharding.shards.sampler import EpochOrder, PackedSampler, permutation
from tests.packed_output import PackedOutput, write_output

PINNED_ORDER = [0, 3, 1, 7, 2, 5, 6, 4]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return PackedDataset(write_output(str(tmp_path_factory.mktemp("output"))).url)


def epoch_order(dataset: PackedDataset, epoch: int, seed: int = 0) -> list[int]:
    order = EpochOrder(dataset, seed, epoch)
    return [order.row_at(place) for place in range(len(dataset))]


def rows_of(batch: dict[str, Any]) -> list[bytes]:
    return [row.numpy().tobytes() for row in batch["input_ids"]]


def expected(dataset: PackedDataset, numbers: list[int]) -> list[bytes]:
    return [dataset[number]["input_ids"].tobytes() for number in numbers]


# --- who sees what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", ["pad", "drop"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_share_every_epoch_in_equal_steps(dataset: PackedDataset, world_size: int, uneven: Any) -> None:
    """26 steps on one rank and 25 on another, and a collective waits for ever."""
    samplers = [PackedSampler(dataset, rank=r, world_size=world_size, uneven=uneven) for r in range(world_size)]
    for epoch in range(3):
        lengths = [len(sampler) for sampler in samplers]
        ranks = [list(sampler) for sampler in samplers]
        assert len(set(lengths)) == 1 and [len(rank) for rank in ranks] == lengths
        order = epoch_order(dataset, epoch)
        whole, left = divmod(len(order), world_size)
        in_turn = list(itertools.chain(*zip(*ranks, strict=True)))
        if uneven == "drop":
            assert in_turn == order[: whole * world_size]
        else:
            assert in_turn == order + order[: world_size - left if left else 0]


def test_more_ranks_than_rows(tmp_path: Path) -> None:
    small = PackedDataset(write_output(str(tmp_path), documents=3, train_shards=1).url)
    assert 0 < len(small) < 8
    padded = [list(PackedSampler(small, rank=rank, world_size=20)) for rank in range(20)]
    assert {len(rank) for rank in padded} == {1} and {rank[0] for rank in padded} == set(range(len(small)))
    assert list(PackedSampler(small, rank=0, world_size=20, uneven="drop")) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_its_own_order(dataset: PackedDataset, workers: int) -> None:
    """Three loops over a DataLoader gave the same order three times; workers that stay changed nothing."""
    sampler = PackedSampler(dataset)
    loader = DataLoader(
        dataset, 8, sampler=sampler, num_workers=workers, collate_fn=collate, persistent_workers=bool(workers)
    )
    epochs = [[row for batch in loader for row in rows_of(batch)] for _ in range(3)]
    assert epochs == [expected(dataset, epoch_order(dataset, epoch)) for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(Counter(epoch) == Counter(epochs[0]) for epoch in epochs)


def test_seeds_have_orders_of_their_own(dataset: PackedDataset) -> None:
    orders = [list(PackedSampler(dataset)), list(PackedSampler(dataset, seed=1))]
    orders.append(list(PackedSampler(dataset, shuffle=False)))
    assert orders[2] == list(range(len(dataset))) and len(set(map(tuple, orders))) == 3


def test_the_order_does_not_drift() -> None:
    """A run that is resumed with a later version must go on where it was: these values must never change."""
    assert permutation(8, 7, 2) == PINNED_ORDER != permutation(8, 7, 3)


def test_a_loop_that_was_left_does_not_decide_the_next(dataset: PackedDataset) -> None:
    """How far workers have read ahead must not be seen: the next loop is the next epoch."""
    for workers in (0, 2):
        loader = DataLoader(dataset, 4, sampler=PackedSampler(dataset), num_workers=workers, collate_fn=collate)
        next(iter(loader))
        assert rows_of(next(iter(loader))) == expected(dataset, epoch_order(dataset, 1)[:4])


def test_torch_distributed_says_which_rank(dataset: PackedDataset, tmp_path: Path) -> None:
    """All ranks of a run that forgets to say it read the same rows."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        sampler = PackedSampler(dataset)
        assert (sampler.rank, sampler.world_size) == (0, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "get_world_size", lambda: 4)
            assert len(PackedSampler(dataset)) == -(-len(dataset) // 4)
    finally:
        distributed.destroy_process_group()


# --- resume -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), before=st.integers(1, 5), after=st.integers(1, 5), seed=st.integers(0, 1))
def test_a_state_is_exact_at_any_world_size(
    dataset: PackedDataset, data: st.DataObject, before: int, after: int, seed: int
) -> None:
    first = PackedSampler(dataset, rank=0, world_size=before, seed=seed)
    taken = data.draw(st.integers(0, len(first)))
    samplers = [PackedSampler(dataset, rank=rank, world_size=before, seed=seed) for rank in range(before)]
    states = []
    for sampler in samplers:
        loop = iter(sampler)
        list(itertools.islice(loop, data.draw(st.integers(1, len(sampler)))))  # read ahead, as workers do
        states.append(json.loads(json.dumps(sampler.state_after(taken))))
    assert all(state == states[0] for state in states)
    orders = epoch_order(dataset, 0, seed), epoch_order(dataset, 1, seed)
    left = orders[0][taken * before :] if taken < len(first) else orders[1]
    ranks = []
    for rank in range(after):
        resumed = PackedSampler(dataset, rank=rank, world_size=after, seed=seed)
        resumed.resume(states[0])
        ranks.append(list(resumed))
    assert list(itertools.chain(*zip(*ranks, strict=True)))[: len(left)] == left


def test_an_epochs_end_is_the_next_ones_begin(dataset: PackedDataset) -> None:
    """`steps * batch_size` counted rows that a last, smaller batch hasn't: 49 of 207 were skipped."""
    sampler = PackedSampler(dataset)
    loader = DataLoader(dataset, 16, sampler=sampler, collate_fn=collate)
    assert len(dataset) % 16
    taken = sum(len(batch["input_ids"]) for batch in loader)
    state = sampler.state_after(taken)
    assert (state["epoch"], state["row"]) == (1, 0)
    with pytest.raises(RequestError, match=f"rows_taken: {len(loader) * 16}, and the loop over epoch 0 has {taken}"):
        sampler.state_after(len(loader) * 16)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_begins_where_it_was_resumed(dataset: PackedDataset, workers: int, persistent: bool) -> None:
    """Also one that was made before, with workers that stay: the state is never in them."""
    if persistent and not workers:
        pytest.skip("torch wants workers for that")
    sampler = PackedSampler(dataset)
    list(itertools.islice(sampler, 20))
    state = sampler.state_after(20)
    resumed = PackedSampler(dataset)
    loader = DataLoader(
        dataset, 4, sampler=resumed, num_workers=workers, persistent_workers=persistent, collate_fn=collate
    )
    resumed.resume(state)
    resumed.set_epoch(state["epoch"])  # as trainers do before every loop
    assert len(loader) == -(-(len(dataset) - 20) // 4)
    assert [row for batch in loader for row in rows_of(batch)] == expected(dataset, epoch_order(dataset, 0)[20:])
    assert [row for batch in loader for row in rows_of(batch)] == expected(dataset, epoch_order(dataset, 1))


def test_a_state_comes_before_the_loop(dataset: PackedDataset) -> None:
    """One that was loaded behind `iter(loader)` started at row 0, without a word."""
    sampler = PackedSampler(dataset)
    loader = DataLoader(dataset, 4, sampler=sampler, num_workers=2, collate_fn=collate)
    loop = iter(loader)
    with pytest.raises(RequestError, match="a loop over this sampler has begun"):
        sampler.resume(sampler.state_after(0))
    assert rows_of(next(loop)) == expected(dataset, epoch_order(dataset, 0)[:4])


def test_another_epoch_than_the_resumed_one_is_refused(dataset: PackedDataset) -> None:
    sampler = PackedSampler(dataset)
    list(itertools.islice(sampler, 5))
    resumed = PackedSampler(dataset)
    resumed.resume(sampler.state_after(5))
    with pytest.raises(RequestError, match="epoch: 1 is not the epoch 0 of the state that was resumed"):
        resumed.set_epoch(1)


def test_set_epoch_names_the_next_loop(dataset: PackedDataset) -> None:
    sampler = PackedSampler(dataset)
    for epoch in (4, 2, 2):
        sampler.set_epoch(epoch)
        assert list(sampler) == epoch_order(dataset, epoch)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corpus": "other"}, "corpus: the state says 'other'"),
        ({"split": "validation"}, "split: the state says 'validation'"),
        ({"seed": 1}, "seed: the state says 1"),
        ({"shuffle": False}, "shuffle: the state says False"),
        ({"labelled_only": "all"}, "labelled_only: the state says 'all'"),
        ({"row": 10**6}, "row: the state says 1000000, and an epoch has"),
        ({"row": -1}, "row: -1 is not a whole number"),
        ({"row": 1.5}, "row: 1.5 is not a whole number"),
        ({"epoch": -1}, "epoch: -1 is not a whole number"),
        ({"epoch": None}, "epoch: None is not a whole number"),
    ],
)
def test_a_state_that_is_not_of_this_order_is_refused(
    dataset: PackedDataset, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        PackedSampler(dataset).resume({**PackedSampler(dataset).state_after(0), **changed})


def test_a_state_of_another_corpus_is_refused(dataset: PackedDataset, tmp_path: Path) -> None:
    """Two corpora of one config have one fingerprint, and the bytes of their shards tell them apart."""
    other: PackedOutput = write_output(str(tmp_path), vocab_size=60_000)
    with pytest.raises(RequestError, match="corpus: the state says"):
        PackedSampler(PackedDataset(other.url)).resume(PackedSampler(dataset).state_after(0))


def test_impossible_arguments_are_refused(dataset: PackedDataset) -> None:
    for arguments, message in [
        ({"rank": 2, "world_size": 2}, "rank: 2 is not one of 0 to world_size - 1 = 1"),
        ({"rank": 2}, "give both or neither"),
        ({"uneven": "cut"}, "uneven: 'cut' is not one of pad, drop"),
    ]:
        with pytest.raises(RequestError, match=message):
            PackedSampler(dataset, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="epoch: -1"):
        PackedSampler(dataset).set_epoch(-1)
    with pytest.raises(RequestError, match="rows_taken: 1, and the loop over epoch 0 has 0 rows"):
        PackedSampler(dataset).state_after(1)


# --- torchdata --------------------------------------------------------------------------------------------------------


def stateful(dataset: PackedDataset, workers: int, world_size: int = 1, rank: int = 0) -> StatefulDataLoader:
    sampler = PackedSampler(dataset, rank=rank, world_size=world_size)
    return StatefulDataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=collate)


@pytest.mark.parametrize(("workers", "steps"), [(0, [0, 1, 7, -1, 99]), (2, [1, 99])])
def test_a_stateful_loader_goes_on_exactly(dataset: PackedDataset, workers: int, steps: list[int]) -> None:
    """At the begin, within, before the last batch and at the end of an epoch; and the epoch behind it."""
    orders = [expected(dataset, epoch_order(dataset, epoch)) for epoch in range(3)]
    for step in steps:
        loader = stateful(dataset, workers)
        batches = len(loader)
        wanted = min(step % batches if step < 0 else step, batches)
        taken = [row for batch in itertools.islice(loader, wanted or None) for row in rows_of(batch)] if wanted else []
        if wanted == batches:
            assert next(iter(loader._iterator), None) is None
        state = loader.state_dict()
        resumed = stateful(dataset, workers)
        resumed.load_state_dict(state)
        rest = [row for batch in resumed for row in rows_of(batch)]
        behind = [row for batch in resumed for row in rows_of(batch)]
        if wanted == batches:
            assert (taken, rest, behind) == tuple(orders), step
        else:
            assert (taken + rest, behind) == tuple(orders[:2]), step


def test_a_stateful_loader_goes_on_at_another_world_size(dataset: PackedDataset) -> None:
    loaders = [stateful(dataset, 0, 2, rank) for rank in range(2)]
    for loader in loaders:
        next(iter(loader))
    states = [loader.state_dict() for loader in loaders]
    ranks = []
    for rank in range(3):
        loader = stateful(dataset, 0, 3, rank)
        loader.load_state_dict(states[0])
        ranks.append([row for batch in loader for row in rows_of(batch)])
    in_turn = list(itertools.chain(*zip(*ranks, strict=True)))
    left = expected(dataset, epoch_order(dataset, 0)[8:])
    assert in_turn[: len(left)] == left
