"""Order: keys that never change, splits and shards that are independent, and a balance that moves the least."""

import pickle
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding import hashing
from sharding.packing import order
from sharding.packing.balance import Balance
from sharding.records.rows import Item

IDS = [f"doc-{i}" for i in range(20_000)]


def item(doc_id: str, source_start: int = 0) -> Item:
    return Item(
        doc_id=doc_id, source_start=source_start, input_ids=np.ones(1, np.uint16), token_type=np.ones(1, np.uint8)
    )


def test_keys_are_those_of_every_earlier_corpus():
    # Pinned: another value here means that the same config no longer gives the same shards.
    assert order.order_key(0, "doc-1") == 0xE453A29C2D5D967E
    assert order.order_key(1, "doc-1") == 0xBBCACD07BF5A9269
    assert order.row_order_key(0, 3, 7) == 0xB60FD987549AE480
    assert hashing.content_id("Ein Text.") == "72058b59ca1b3152345a27dfca6e0dba"
    assert hashing.partition_of("doc-1", 1 << 64) == 0x8677A31F943C452D
    assert [i for i in IDS[:40] if order.split_of(i, 0.1) == "validation"] == [
        "doc-11",
        "doc-13",
        "doc-18",
        "doc-21",
        "doc-25",
        "doc-33",
        "doc-36",
    ]
    assert [i for i in IDS[:30] if order.is_raw(0, i, 0.2)] == [
        "doc-3",
        "doc-6",
        "doc-7",
        "doc-13",
        "doc-14",
        "doc-28",
        "doc-29",
    ]


def test_the_split_of_a_document_without_an_id_of_its_own_is_that_of_its_id():
    for text in IDS[:100]:
        hashed = hashing.hash64(hashing.Purpose.SPLIT, 0, hashing.content_id(text))
        assert order.split_of(text, 0.3) == ("validation" if hashing.chosen(hashed, 0.3) else "train")


def test_any_id_has_a_key():
    for doc_id in ("", "\x00", "日本", "\ud800", "x" * 100_000):
        assert 0 <= order.order_key(5, doc_id) < 1 << 64
    assert order.order_key(-1, "a") != order.order_key(1, "a")


@pytest.mark.parametrize("num_shards", [1, 2, 7, 64])
def test_shards_are_even(num_shards):
    counts = Counter(order.shard_of(order.order_key(0, doc_id), num_shards) for doc_id in IDS)
    expected = len(IDS) / num_shards
    assert set(counts) == set(range(num_shards))
    # Five standard deviations of a binomial count; the ids are fixed, so this either holds or never does.
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_split_plain_documents_and_shard_are_independent():
    validation = [doc_id for doc_id in IDS if order.split_of(doc_id, 0.25) == "validation"]
    raw = [doc_id for doc_id in IDS if order.is_raw(0, doc_id, 0.25)]
    both = set(validation) & set(raw)
    low = [doc_id for doc_id in validation if order.order_key(0, doc_id) < 1 << 62]
    in_shard_0 = [doc_id for doc_id in validation if order.order_key(0, doc_id) % 4 == 0]
    assert len(validation) == pytest.approx(5_000, rel=0.05)
    assert len(raw) == pytest.approx(5_000, rel=0.05)
    for quarter in (both, low, in_shard_0):
        assert len(quarter) == pytest.approx(1_250, rel=0.1)


def test_fraction_bounds_and_nesting():
    assert {order.split_of(doc_id, 0.0) for doc_id in IDS} == {"train"}
    assert not any(order.is_raw(0, doc_id, 0.0) for doc_id in IDS)
    assert all(order.is_raw(0, doc_id, 1.0) for doc_id in IDS)
    small = {doc_id for doc_id in IDS if order.split_of(doc_id, 0.01) == "validation"}
    large = {doc_id for doc_id in IDS if order.split_of(doc_id, 0.1) == "validation"}
    assert small < large


@given(st.permutations([(f"d{i}", start) for i in range(6) for start in (0, 4096)]))
def test_sorting_does_not_depend_on_arrival(arrivals):
    in_order = [(i.doc_id, i.source_start) for i in order.sort_items([item(*arrival) for arrival in arrivals], seed=3)]
    by_key = sorted({doc_id for doc_id, _ in arrivals}, key=lambda doc_id: order.order_key(3, doc_id))
    assert in_order == [(doc_id, start) for doc_id in by_key for start in (0, 4096)]


def test_rows_are_shuffled_by_shard_and_seed():
    rows = list(range(200))
    shuffles = [order.shuffle_rows(rows, seed, shard) for seed, shard in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(shuffled) == rows for shuffled in shuffles)
    assert rows not in shuffles
    assert len({tuple(shuffled) for shuffled in shuffles}) == 3
    assert order.shuffle_rows(rows, 0, 0) == shuffles[0]
    # Mixed, not merely different: half of the first half comes from the second half.
    assert 30 < sum(row >= 100 for row in shuffles[0][:100]) < 70


@pytest.mark.parametrize(
    ("counts", "rows_per_shard", "short_shards", "moves"),
    [
        ([3, 3], 3, (), {}),
        ([4, 2], 3, (), {(0, 3): (1, 2)}),
        ([3, 2], 3, (1,), {}),
        ([5, 1, 1], 3, (1, 2), {(0, 3): (1, 1), (0, 4): (2, 1)}),
        ([5, 0, 4, 1], 3, (1, 3), {(0, 3): (1, 0), (0, 4): (1, 1), (2, 3): (3, 1)}),
        # Fewer rows than shards: some are empty.
        ([2, 0, 0], 1, (1,), {(0, 1): (2, 0)}),
        ([0, 0, 1], 1, (0, 1), {}),
        ([0, 0], 0, (), {}),
        ([7], 7, (), {}),
    ],
)
def test_balance_table(counts, rows_per_shard, short_shards, moves):
    balance = Balance(counts)
    assert balance.rows_per_shard == rows_per_shard
    assert balance.short_shards == short_shards
    placed = {(s, i): balance.place(s, i) for s, count in enumerate(counts) for i in range(count)}
    assert {source: target for source, target in placed.items() if source != target} == moves
    assert balance.moved_rows == len(moves)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_balance_fills_every_position_once(counts):
    balance = Balance(counts)
    rows = balance.rows_per_shard
    placed = [balance.place(s, i) for s, count in enumerate(counts) for i in range(count)]
    missing = [(shard, rows - 1) for shard in balance.short_shards]
    assert sorted(placed + missing) == [(s, p) for s in range(len(counts)) for p in range(rows)]
    assert len(missing) < len(counts)
    assert rows == -(-sum(counts) // len(counts))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_no_choice_of_quotas_moves_fewer_rows(counts):
    balance = Balance(counts)
    choices = combinations(range(len(counts)), len(balance.short_shards))
    fewest = min(
        sum(max(0, count - balance.rows_per_shard + (shard in padded)) for shard, count in enumerate(counts))
        for padded in choices
    )
    moved = sum(balance.place(s, i) != (s, i) for s, count in enumerate(counts) for i in range(count))
    assert moved == balance.moved_rows == fewest


def test_balance_travels_and_refuses():
    balance = pickle.loads(pickle.dumps(Balance([5, 0, 4, 1])))  # noqa: S301
    assert balance == Balance([5, 0, 4, 1])
    assert balance.place(0, 4) == (1, 1)
    for shard, index in ((0, 5), (1, 0), (4, 0), (-1, 0), (0, -1)):
        with pytest.raises(IndexError):
            balance.place(shard, index)
    for counts in ([], [3, -1]):
        with pytest.raises(ValueError, match="balance"):
            Balance(counts)
