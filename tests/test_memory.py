"""The n-gram memory: counting in any order, leaving a document out, and never remembering what was not there."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from difficulty.memory import counting
from difficulty.memory.counting import (
    MemoryConfig,
    NgramCounts,
    document_level,
    join_ranges,
    merge_range,
    starting_level,
)
from difficulty.memory.table import BASE_PROBABILITY, NgramMemory, describe_memory
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage.files import read_bytes, write_bytes

Corpus = list[tuple[str, np.ndarray]]


def counted(corpus: Iterable[tuple[str, np.ndarray]], config: MemoryConfig, min_level: int = 0) -> NgramCounts:
    counts = NgramCounts(config, min_level)
    counts.add_many(corpus)
    return counts


def memory_of(corpus: Iterable[tuple[str, np.ndarray]], config: MemoryConfig) -> NgramMemory:
    return NgramMemory.from_counts(counted(corpus, config))


def ids_of(corpus: Corpus) -> list[np.ndarray]:
    return [ids for _, ids in corpus]


def together(parts: Iterable[NgramCounts], config: MemoryConfig) -> NgramCounts:
    """The counts of all, as they meet: range by range."""
    pieces: dict[int, list[bytes]] = {}
    for part in parts:
        for number, piece in part.ranges():
            pieces.setdefault(number, []).append(piece)
    assert set(pieces) == set(range(counting.num_ranges(config)))
    return join_ranges(config, [merge_range(config, pieces[number]) for number in sorted(pieces, reverse=True)])


def as_bytes(counts: NgramCounts, folder: Path) -> bytes:
    url = str(folder / "memory.arrow")
    NgramMemory.from_counts(counts).save(url)
    return read_bytes(url)


def random_documents(num: int, length: int, vocab_size: int, seed: int, name: str = "doc") -> Corpus:
    rng = np.random.default_rng(seed)
    return [(f"{name}-{i}", rng.integers(0, vocab_size, length, dtype=np.uint16)) for i in range(num)]


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    """Few distinct tokens, so that n-grams recur within and across documents; empty and one-token documents too."""
    documents = draw(st.lists(st.lists(st.integers(0, 3), max_size=24), min_size=1, max_size=6))
    dtype = draw(st.sampled_from([np.uint16, np.uint32]))
    return [(f"d{i}", np.array(ids, dtype)) for i, ids in enumerate(documents)]


CONFIGS = st.builds(
    MemoryConfig,
    order=st.integers(2, 5),
    min_elsewhere=st.integers(1, 3),
    prior_count=st.sampled_from([0.5, 4.0, 30.0]),
    max_ngrams=st.just(1 << 16),
)


def surprisal_by_the_book(others: Iterable[np.ndarray], ids: np.ndarray, config: MemoryConfig) -> np.ndarray:
    """The formula over plain counts of all n-grams of the other documents."""
    counts: Counter[tuple[int, ...]] = Counter()
    for other in others:
        for n in range(1, config.order + 1):
            counts.update(tuple(other[i : i + n].tolist()) for i in range(len(other) - n + 1))
    total = sum(len(other) for other in others)
    counts = Counter({ngram: c for ngram, c in counts.items() if c >= config.min_elsewhere})
    nats = []
    for i in range(len(ids)):
        p = BASE_PROBABILITY
        for n in range(1, min(config.order, i + 1) + 1):
            ngram = tuple(ids[i - n + 1 : i + 1].tolist())
            context = counts[ngram[:-1]] if n > 1 else total
            p = (counts[ngram] + config.prior_count * p) / (context + config.prior_count)
        nats.append(-np.log(p))
    return np.array(nats, np.float32)


@settings(max_examples=60)
@given(corpora(), CONFIGS)
def test_surprisal_is_the_formula_over_all_other_documents(corpus: Corpus, config: MemoryConfig) -> None:
    memory = memory_of(corpus, config)
    surprisals = memory.surprisal_many(ids_of(corpus))
    for i, (_, ids) in enumerate(corpus):
        others = [other for j, (_, other) in enumerate(corpus) if j != i]
        assert surprisals[i].dtype == np.float32
        np.testing.assert_allclose(surprisals[i], surprisal_by_the_book(others, ids, config), rtol=1e-5, atol=1e-6)


@given(corpora(), CONFIGS)
def test_leaving_out_is_never_having_counted(corpus: Corpus, config: MemoryConfig) -> None:
    (_, ids), *others = corpus
    # Of exact copies one is left out wherever they are counted.
    assume(not any(np.array_equal(ids, other) for _, other in others))
    np.testing.assert_array_equal(
        memory_of(corpus, config).surprisal_nats(ids), memory_of(others, config).surprisal_nats(ids)
    )


@given(corpora(), CONFIGS, st.data())
def test_a_new_document_has_nothing_left_out(corpus: Corpus, config: MemoryConfig, data: st.DataObject) -> None:
    ids = np.array(data.draw(st.lists(st.integers(0, 3), max_size=24)), np.uint16)
    assume(not any(np.array_equal(ids, other) for _, other in corpus))
    nats = memory_of(corpus, config).surprisal_nats(ids)
    np.testing.assert_allclose(nats, surprisal_by_the_book(ids_of(corpus), ids, config), rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(corpora(), CONFIGS)
def test_probabilities_sum_to_at_most_one(corpus: Corpus, config: MemoryConfig) -> None:
    memory = memory_of(corpus, config)
    for prefix in ([], *(ids[:k].tolist() for _, ids in corpus[:2] for k in (1, 2, 3, 7))):
        # Ended by what no document has: one that was counted would be left out.
        nexts = [np.array([*prefix, token, 99], np.uint16) for token in range(6)]
        total = sum(np.exp(-float(surprisal[-2])) for surprisal in memory.surprisal_many(nexts))
        assert total <= 1 + 1e-6


def test_the_seen_tokens_take_nearly_all_of_the_probability() -> None:
    corpus = random_documents(num=50, length=200, vocab_size=5, seed=0)
    memory = memory_of(corpus, MemoryConfig(max_ngrams=1 << 16))
    nexts = [np.array([1, 2, 3, token]) for token in range(5)]
    total = sum(np.exp(-float(surprisal[-1])) for surprisal in memory.surprisal_many(nexts))
    assert 0.98 < total <= 1 + 1e-6


# --- what it is for ---------------------------------------------------------------------------------------------------


def with_passage(documents: Corpus, passage: np.ndarray, at: int) -> Corpus:
    return [(doc_id, np.concatenate([ids[:at], passage, ids[at:]])) for doc_id, ids in documents]


def test_boilerplate_is_remembered_and_the_rest_is_not() -> None:
    passage = np.arange(60000, 60040, dtype=np.uint16)
    corpus = with_passage(random_documents(num=40, length=300, vocab_size=50000, seed=1), passage, at=100)
    memory = memory_of(corpus, MemoryConfig())
    for surprisal in memory.surprisal_many(ids_of(corpus)):
        assert (surprisal[104:140] < 0.02).all()  # from its fourth token on, when it has a whole context
        assert surprisal[100] > 5  # nothing says that it begins here
        assert (surprisal[:100] > 8).all()
        assert (surprisal[140:] > 8).all()


def test_a_passage_of_one_document_is_not_remembered_however_often_it_repeats_there() -> None:
    passage = np.arange(60000, 60010, dtype=np.uint16)
    corpus = random_documents(num=30, length=300, vocab_size=50000, seed=2)
    corpus[0] = ("doc-0", np.tile(passage, 50))
    surprisal = memory_of(corpus, MemoryConfig()).surprisal_nats(corpus[0][1])
    assert (surprisal > 20).all()  # its tokens occur nowhere else


def test_a_phrase_that_a_new_document_repeats_is_known_from_the_corpus() -> None:
    """Its repeats were never counted: taking them off the corpus's would make it unknown."""
    phrase = np.arange(60000, 60010, dtype=np.uint16)
    corpus = with_passage(random_documents(num=20, length=300, vocab_size=50000, seed=8), phrase, at=100)
    memory = memory_of(corpus, MemoryConfig())
    new = np.tile(phrase, 19)
    surprisal = memory.surprisal_nats(new)
    known = np.tile(np.arange(10) >= 4, 19)  # from its fifth token on, where a whole context is in it
    assert (surprisal[known] < 0.1).all()
    # Counted itself, and looked up under whatever id, it is left out: the other twenty say the same.
    counted_too = memory_of([*corpus, ("new", new)], MemoryConfig())
    np.testing.assert_array_equal(counted_too.surprisal_nats(new), surprisal)


def test_a_sample_knows_which_documents_it_counted() -> None:
    """Those that the sampling left out are not taken off, those in it are, as the memory of another run too."""
    passage = np.arange(60000, 60020, dtype=np.uint16)
    corpus = random_documents(num=400, length=100, vocab_size=50000, seed=9)
    corpus = [(doc_id, np.concatenate([ids[:50], np.tile(passage, 3)])) for doc_id, ids in corpus[:4]] + corpus[4:]
    counts = counted(corpus, MemoryConfig(max_ngrams=1 << 12))
    memory, in_sample = NgramMemory.from_counts(counts), [d for d, _ in corpus if document_level(d) >= counts.level]
    assert 0 < len(in_sample) < 100
    found = memory._look_up(np.array([counting.document_key(ids) for _, ids in corpus], np.uint64)) > 0
    assert [doc_id for (doc_id, _), there in zip(corpus, found, strict=True) if there] == in_sample


@pytest.mark.parametrize(
    ("copies", "min_elsewhere", "remembered"), [(1, 1, False), (2, 1, True), (2, 2, False), (3, 2, True), (3, 3, False)]
)
def test_how_many_copies_it_takes(copies: int, min_elsewhere: int, remembered: bool) -> None:
    passage = np.arange(60000, 60020, dtype=np.uint16)
    documents = random_documents(num=20, length=100, vocab_size=50000, seed=3)
    corpus = with_passage(documents[:copies], passage, at=50) + documents[copies:]
    surprisal = memory_of(corpus, MemoryConfig(min_elsewhere=min_elsewhere)).surprisal_nats(corpus[0][1])
    assert (surprisal[54:70] < 2).all() == remembered
    assert (surprisal[54:70] > 8).all() != remembered


def test_documents_are_not_joined() -> None:
    corpus = [(f"d{i}", ids) for i in range(20) for ids in [np.array([1, 2, 3]), np.array([7, 8, 9])]]
    corpus = [(f"{doc_id}-{i}", ids) for i, (doc_id, ids) in enumerate(corpus)]
    joined = memory_of(corpus, MemoryConfig()).surprisal_nats(np.array([1, 2, 3, 7]))
    assert joined[2] < 0.2
    assert joined[3] > 1.5  # no more likely than anywhere


# --- order, merging, sampling -----------------------------------------------------------------------------------------


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorts, merges and ranges as a large corpus has them."""
    monkeypatch.setattr(counting, "BUFFERED_TOKENS", 500)
    monkeypatch.setattr(counting, "RANGE_NGRAMS", 200)


MIXED = with_passage(random_documents(60, 80, 300, seed=4), np.arange(50), at=20) + random_documents(
    20, 30, 10, seed=5, name="dense"
)


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("max_ngrams", [1 << 20, 4000, 1000, 256])
def test_any_order_any_bundles_any_ranges_same_bytes(
    max_ngrams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MemoryConfig(max_ngrams=max_ngrams)
    whole = as_bytes(counted(MIXED, config), tmp_path)
    rng = np.random.default_rng(0)
    for trial, ngrams_per_range in enumerate([1 << 18, 500, 1000, 2000, 500, 500]):
        monkeypatch.setattr(counting, "NGRAMS_PER_RANGE", ngrams_per_range)
        documents = [MIXED[i] for i in rng.permutation(len(MIXED))]
        cuts = np.sort(rng.integers(0, len(MIXED) + 1, trial))
        pieces = np.split(np.arange(len(MIXED)), cuts)
        parts = [counted([documents[i] for i in piece], config) for piece in pieces]
        assert as_bytes(together(parts, config), tmp_path) == whole


def test_a_range_of_one_hash_drops_what_another_bundle_has_dropped() -> None:
    """A bundle whose documents are all of a high level says so, also of the ranges in which it has nothing."""
    config = MemoryConfig(max_ngrams=256)
    low, high = counted(MIXED[:1], config), NgramCounts(config, 40)
    for parts in ([low, high], [high, low]):
        merged = together(parts, config)
        assert merged.level == 40 and not len(merged.ngrams(1)[0])


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("max_ngrams", [8000, 2000, 256])
def test_a_full_memory_counts_a_sample_of_documents_exactly(max_ngrams: int) -> None:
    config = MemoryConfig(max_ngrams=max_ngrams)
    counts = counted(MIXED, config)
    memory = NgramMemory.from_counts(counts)
    level = memory.level
    assert level > 0
    sample = [(doc_id, ids) for doc_id, ids in MIXED if document_level(doc_id) >= level]
    described = memory.to_json()
    assert described["documents"] == len(MIXED)
    assert described["documents_counted"] == len(sample)
    assert described["tokens_counted"] == sum(len(ids) for _, ids in sample)
    for (doc_id, ids), surprisal in zip(MIXED, memory.surprisal_many(ids_of(MIXED)), strict=True):
        others = [other for other_id, other in sample if other_id != doc_id]
        np.testing.assert_allclose(surprisal, surprisal_by_the_book(others, ids, config), rtol=1e-5, atol=1e-6)
    # A level less would not have fitted.
    fuller = counted([(d, ids) for d, ids in MIXED if document_level(d) >= level - 1], MemoryConfig())
    assert len(fuller.to_json()) and sum(len(keys) for keys, _ in fuller._runs) > max_ngrams  # told, it is compact


@pytest.mark.parametrize("max_ngrams", [256, 1 << 10, 1 << 14])
def test_a_small_memory_never_remembers_what_is_unique(max_ngrams: int) -> None:
    """A table that lets n-grams share counters would, at a hundred times its size."""
    corpus = random_documents(num=400, length=500, vocab_size=1 << 16, seed=6)
    memory = memory_of(corpus, MemoryConfig(max_ngrams=max_ngrams))
    surprisal = np.concatenate(memory.surprisal_many(ids_of(corpus)))
    # By chance a bigram or two of these occurs in several documents.
    assert (surprisal < 4).mean() < 1e-4
    assert (surprisal > 7).mean() > 0.999


def test_boilerplate_survives_the_sampling() -> None:
    passage = np.arange(60000, 60040, dtype=np.uint16)
    corpus = with_passage(random_documents(num=400, length=300, vocab_size=50000, seed=7), passage, at=100)
    memory = memory_of(corpus, MemoryConfig(max_ngrams=1 << 15))
    assert memory.level >= 3
    surprisals = memory.surprisal_many(ids_of(corpus))
    assert all((surprisal[104:140] < 0.5).all() for surprisal in surprisals)
    assert all((surprisal[:100] > 6).all() for surprisal in surprisals)


def test_levels_halve() -> None:
    levels = np.array([document_level(f"document {i}") for i in range(8000)])
    for level in range(4):
        assert (levels >= level).mean() == pytest.approx(0.5**level, rel=0.1)


@pytest.mark.parametrize(
    ("corpus_tokens", "level"),
    [(0, 0), (1e6, 0), (2**25 - 1, 0), (2**25, 1), (2**27, 3), (2.5e12, 17), (1e300, 63)],
)
def test_starting_level(corpus_tokens: float, level: int) -> None:
    assert starting_level(MemoryConfig(max_ngrams=1 << 24), corpus_tokens) == level


@pytest.mark.parametrize("first", [0, 50, len(MIXED)])
def test_counting_from_a_level_on_is_counting_those_documents(first: int) -> None:
    config = MemoryConfig()
    from_one, from_two = counted(MIXED[:first], config, min_level=1), counted(MIXED[first:], config, min_level=2)
    merged = together([from_one, from_two], config)
    memory = NgramMemory.from_counts(merged)
    sample = [(doc_id, ids) for doc_id, ids in MIXED if document_level(doc_id) >= 2]
    assert memory.to_json()["documents_counted"] == len(sample)
    of_sample = memory_of(sample, config)
    for _, ids in MIXED:
        np.testing.assert_array_equal(memory.surprisal_nats(ids), of_sample.surprisal_nats(ids))


def test_counts_saturate() -> None:
    most = np.array([0xFFFFFFFF, 5, 0xFFFFFFF0, 0x20], np.uint32)
    np.testing.assert_array_equal(counting._summed(most, np.array([0, 2])), [0xFFFFFFFF, 0xFFFFFFFF])
    np.testing.assert_array_equal(counting._summed(most, np.array([0, 1, 2, 3])), most)


# --- looking up and storing -------------------------------------------------------------------------------------------


def test_batches_do_not_matter() -> None:
    memory = memory_of(MIXED, MemoryConfig())
    changed = np.append(MIXED[0][1], 9)
    together = memory.surprisal_many([*ids_of(MIXED), changed, np.empty(0, np.uint16)])
    for (_, ids), surprisal in zip(MIXED, together, strict=False):
        np.testing.assert_array_equal(memory.surprisal_nats(ids), surprisal)
    assert together[-2].mean() < together[0].mean()  # its earlier version is another document
    assert len(together[-1]) == 0
    assert memory.surprisal_many([]) == []


@settings(max_examples=20)
@given(st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_every_stored_ngram_is_found_with_its_count_and_no_other(num: int, seed: int) -> None:
    """Also those that stand far from home, in a table of any size."""
    rng = np.random.default_rng(seed)
    hashes = np.unique(rng.integers(0, 2**64 - 1, num, dtype=np.uint64) & counting.HASH_MASK)
    if num % 2:  # crowd half of them into a corner
        hashes[: len(hashes) // 2] >>= np.uint64(10)
        hashes = np.unique(hashes & counting.HASH_MASK)
    occurrences = rng.integers(2, 2**32, len(hashes), dtype=np.uint32)

    class Fixed(NgramCounts):
        def ngrams(self, min_count: int) -> tuple[np.ndarray, np.ndarray]:
            return hashes, occurrences

    memory = NgramMemory.from_counts(Fixed(MemoryConfig()))
    np.testing.assert_array_equal(memory._look_up(hashes), occurrences)
    absent = np.setdiff1d(rng.integers(0, 2**64 - 1, 1000, dtype=np.uint64) & counting.HASH_MASK, hashes)
    assert not memory._look_up(absent).any()


def test_the_memory_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    memory = memory_of(MIXED, MemoryConfig(order=3, prior_count=2.5))
    entry = memory.save(str(tmp_path / "memory.arrow"))
    loaded = NgramMemory.load(str(tmp_path / "memory.arrow"))
    assert loaded.to_json() == memory.to_json()
    assert loaded.config == MemoryConfig(order=3, prior_count=2.5)
    for a, b in zip(memory.surprisal_many(ids_of(MIXED)), loaded.surprisal_many(ids_of(MIXED)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (entry.name, entry.size_bytes) == ("memory.arrow", (tmp_path / "memory.arrow").stat().st_size)
    assert not loaded._slots.flags.owndata  # mapped, not copied
    assert describe_memory(str(tmp_path / "memory.arrow")) == memory.to_json()
    assert 0 < memory.to_json()["occupied_share"] <= 0.5


def test_a_memory_is_described_from_the_head_of_its_file(tmp_path: Path) -> None:
    url = str(tmp_path / "memory.arrow")
    memory = memory_of(MIXED, MemoryConfig())
    memory.save(url)
    whole = read_bytes(url)
    write_bytes(url, whole[:2048])
    assert len(whole) > 4096
    assert describe_memory(url) == memory.to_json()


def test_the_memory_of_another_tokenizer_is_refused(tmp_path: Path, byte_tokenizer: str) -> None:
    url, tokenizer = str(tmp_path / "memory.arrow"), load_tokenizer(byte_tokenizer)
    NgramMemory.from_counts(counted(MIXED, MemoryConfig()), tokenizer.fingerprint).save(url)
    assert NgramMemory.load(url, tokenizer).config == MemoryConfig()
    NgramMemory.from_counts(counted(MIXED, MemoryConfig()), "of another").save(url)
    with pytest.raises(RequestError, match=r"difficulty\.memory_path: the n-grams in .*memory\.arrow are of tokens of"):
        NgramMemory.load(url, tokenizer)


def test_the_memory_of_nothing() -> None:
    memory = memory_of([], MemoryConfig())
    np.testing.assert_allclose(memory.surprisal_nats(np.array([1, 2, 3])), 32 * np.log(2), rtol=1e-6)


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    path = str(tmp_path / "foreign.arrow")
    batch = pa.record_batch({"slots": pa.array([1, 2], pa.uint64())})
    with pa.OSFile(path, "wb") as out, pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    return path


def test_what_is_no_memory_is_refused_by_name(tmp_path: Path, foreign: str) -> None:
    with pytest.raises(MillError, match=r"absent\.arrow"):
        NgramMemory.load(str(tmp_path / "absent.arrow"))
    with pytest.raises(MillError, match=r"foreign\.arrow is not an n-gram memory"):
        NgramMemory.load(foreign)
    write_bytes(str(tmp_path / "garbage.arrow"), b"garbage")
    with pytest.raises(MillError, match=r"garbage\.arrow"):
        NgramMemory.load(str(tmp_path / "garbage.arrow"))


def test_a_memory_that_was_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    url = str(tmp_path / "memory.arrow")
    memory_of(MIXED, MemoryConfig()).save(url)
    whole = read_bytes(url)
    with pa.ipc.open_stream(whole) as reader:
        schema = reader.schema
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema):
        pass
    for cut in (sink.getvalue(), whole[: len(whole) // 2]):
        write_bytes(url, cut)
        with pytest.raises(MillError, match=r"memory\.arrow"):
            NgramMemory.load(url)


@pytest.mark.parametrize(
    "wrong", [{"order": 1}, {"max_ngrams": 10}, {"min_elsewhere": 0}, {"prior_count": 0.0}, {"slots": 4}]
)
def test_wrong_configs(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MemoryConfig(**wrong)  # type: ignore[arg-type]
