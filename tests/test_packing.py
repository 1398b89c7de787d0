"""Packing: tokens conserved, no item torn, every row exact, and best-fit as it says."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sharding.packing import order
from sharding.packing.best_fit import best_fit_decreasing, pack_rows, row_of, windows
from sharding.packing.config import PackConfig
from sharding.records.base import encode
from sharding.records.rows import Item, Row, TokenType

CAPACITY = 32

lengths_in_capacity = st.lists(st.integers(1, CAPACITY), max_size=80)


def make_items(lengths, dtype=np.uint16):
    """Items with ids and types of their own, so that a swap or a tear shows."""
    rng = np.random.default_rng(0)
    return [
        Item(
            doc_id=f"doc-{number // 2}",
            source_start=(number % 2) * 5_000_000_000,
            input_ids=rng.integers(1, 60_000, length).astype(dtype),
            token_type=rng.integers(1, 4, length).astype(np.uint8),
        )
        for number, length in enumerate(lengths)
    ]


def unpack(rows: list[Row]) -> list[Item]:
    """The items of the rows by what the rows say of themselves."""
    items = []
    for row in rows:
        stops = np.cumsum(row.seq_lengths)
        for doc_id, source_start, stop, length in zip(
            row.doc_ids, row.source_starts, stops, row.seq_lengths, strict=True
        ):
            items.append(
                Item(
                    doc_id=doc_id,
                    source_start=int(source_start),
                    input_ids=row.input_ids[stop - length : stop],
                    token_type=row.token_type[stop - length : stop],
                )
            )
    return items


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([], []),
        ([10], [[0]]),
        ([6, 4], [[0, 1]]),
        ([4, 6, 5, 5], [[0, 1], [2, 3]]),
        # 7 opens, 6 opens, 3 fits both but best the 7; 4 goes to the 6.
        ([3, 4, 6, 7], [[0, 3], [1, 2]]),
        # Next-fit would open six bins here; 37 tokens need at least four.
        ([5, 7, 5, 2, 4, 2, 5, 1, 6], [[1, 3, 7], [4, 8], [0, 2], [5, 6]]),
        # Equal lengths in their incoming order; of two bins as full, the later one.
        ([8, 8, 2, 2], [[0, 3], [1, 2]]),
    ],
)
def test_best_fit_table(lengths, bins):
    assert best_fit_decreasing(lengths, 10) == bins


@given(lengths_in_capacity)
def test_every_choice_is_the_best_fit(lengths):
    """Replays the packing: an item goes to a least sufficient room, and to a new bin only when none is sufficient."""
    bins = best_fit_decreasing(lengths, CAPACITY)
    assert sorted(index for indices in bins for index in indices) == list(range(len(lengths)))
    bin_of = {index: number for number, indices in enumerate(bins) for index in indices}
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        sufficient = [room for room in rooms if room >= lengths[index]]
        if bin_of[index] == len(rooms):
            assert not sufficient
            rooms.append(CAPACITY)
        else:
            assert rooms[bin_of[index]] == min(sufficient)
        rooms[bin_of[index]] -= lengths[index]
    assert all(room >= 0 for room in rooms)


@pytest.mark.parametrize("length", [0, CAPACITY + 1])
def test_an_item_that_layout_should_have_refused(length):
    with pytest.raises(ValueError, match=f"{length} tokens"):
        list(pack_rows(make_items([3, length]), CAPACITY))


def test_items_of_another_id_type_are_refused():
    with pytest.raises(ValueError, match="uint32"):
        list(pack_rows(make_items([3]) + make_items([3], np.uint32), CAPACITY))


@given(lengths_in_capacity, st.integers(1, 30))
def test_rows_hold_exactly_the_items(lengths, window_items):
    items = make_items(lengths)
    rows = list(pack_rows(items, CAPACITY, window_items=window_items))
    assert Counter(map(encode, unpack(rows))) == Counter(map(encode, items))
    for row in rows:
        used = int(row.seq_lengths.sum())
        assert row.input_ids.shape == row.token_type.shape == (CAPACITY,)
        assert (row.input_ids.dtype, row.token_type.dtype) == (np.uint16, np.uint8)
        assert (row.seq_lengths.dtype, row.source_starts.dtype) == (np.int32, np.int64)
        assert 1 <= used <= CAPACITY
        assert (row.token_type[:used] != TokenType.PADDING).all()
        assert not row.token_type[used:].any()
        assert not row.input_ids[used:].any()


@given(lengths_in_capacity)
def test_items_of_a_row_keep_their_order(lengths):
    items = make_items(lengths)
    place = {encode(item): number for number, item in enumerate(items)}
    for row in pack_rows(items, CAPACITY):
        places = [place[encode(item)] for item in unpack([row])]
        assert places == sorted(places)


@given(st.lists(st.integers(1, CAPACITY), max_size=40), st.randoms(use_true_random=False))
def test_rows_do_not_depend_on_arrival(lengths, random):
    items = make_items(lengths)
    shuffled = random.sample(items, len(items))
    first, second = (list(pack_rows(order.sort_items(some, seed=1), CAPACITY)) for some in (items, shuffled))
    assert first == second


@pytest.mark.parametrize(
    ("num_items", "sizes"),
    [(0, []), (1, [1]), (9, [9]), (10, [10]), (19, [19]), (20, [10, 10]), (29, [10, 19]), (30, [10, 10, 10])],
)
def test_windows(num_items, sizes):
    runs = list(windows(range(num_items), 10))
    assert [len(run) for run in runs] == sizes
    assert [item for run in runs for item in run] == list(range(num_items))


def test_windows_are_streamed():
    taken = []
    stream = windows((taken.append(i) or i for i in range(1_000)), 10)
    next(stream)
    assert len(taken) == 20


@pytest.mark.parametrize("sequence_length", [4096, 8192])
def test_padding_on_document_lengths(sequence_length):
    """Lognormal lengths with the median and spread of web text leave at most 0.3% of padding at 10,000 items."""
    lengths = np.random.default_rng(7).lognormal(np.log(900), 1.0, 10_000)
    lengths = np.clip(lengths, 1, sequence_length).astype(int).tolist()
    bins = best_fit_decreasing(lengths, sequence_length)
    assert 1 - sum(lengths) / (len(bins) * sequence_length) <= 0.003


def test_a_row_of_nothing_is_padding():
    row = row_of([], CAPACITY, np.dtype(np.uint32), with_surprisal=False)
    assert (row.input_ids.dtype, row.input_ids.shape, row.token_type.shape) == (np.uint32, (CAPACITY,), (CAPACITY,))
    assert not row.input_ids.any()
    assert not row.token_type.any()
    assert unpack([row]) == []


def test_config_from_json():
    adapter = TypeAdapter(PackConfig)
    config = adapter.validate_json('{"sequence_length": 8192, "raw_fraction": 1, "document_end": "<|end|>"}')
    assert config == PackConfig(sequence_length=8192, raw_fraction=1.0, document_end="<|end|>")
    assert PackConfig(sequence_length=16).document_end is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sequence_length", "15"),
        ("sequence_length", '"8192"'),
        ("num_shards", "0"),
        ("seed", "-1"),
        ("validation_fraction", "1.0"),
        ("validation_fraction", "NaN"),
        ("raw_fraction", "1.01"),
        ("window_items", "0"),
        ("zstd_level", "23"),
        ("thought_open", "null"),
        ("sequence_lenght", "8192"),
    ],
)
def test_config_refuses(key, value):
    json = f'{{"sequence_length": 64, "{key}": {value}}}'
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(PackConfig).validate_json(json)
    assert [error["loc"] for error in caught.value.errors()] == [(key,)]
