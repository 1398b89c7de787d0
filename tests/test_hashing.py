"""Every hash that decides something keeps its value: another one reorders a corpus, or buys its generations anew."""

from pathlib import Path

from augment.requests.prompts import Template
from augment.selection.benchmarks.files import digest_of
from augment.selection.values import value_digest
from augment.selection.word_runs import _hash_of_word
from difficulty.memory.counting import document_level
from sharding import hashing
from sharding.hashing import Purpose
from sharding.packing import order
from sharding.sources.units import SourceFile, listing_digest


def test_what_a_corpus_follows_from() -> None:
    assert hashing.partition_of("doc-1", 1 << 64) == 0x8677A31F943C452D
    assert order.order_key(0, "doc-1") == 0xE453A29C2D5D967E
    assert order.row_order_key(0, 3, 7) == 0xB60FD987549AE480
    assert hashing.content_id("Ein Text.") == "72058b59ca1b3152345a27dfca6e0dba"
    assert hashing.seed_of("key-0") == 2128536296
    assert hashing.fraction_of("key-0") == 0.7864436896052212
    assert hashing.hashed(Purpose.TIER, "doc-1#0", 16).hex() == "0b0d10ffb6ba338bf06e4c925bd688dd"
    assert hashing.hashed(Purpose.CONTROL, "doc-1#0/rank").hex() == "d750efe582239a91"
    assert hashing.hashed(Purpose.READING, "0 1").hex() == "200ebd9faa321d7f"
    assert hashing.hashed(Purpose.REPORT, "part").hex() == "2622e0c7862f4355"
    assert [document_level(f"doc-{i}") for i in range(12)] == [0, 4, 1, 0, 0, 0, 0, 4, 2, 3, 0, 1]
    assert _hash_of_word["thought"] == 4943747097340578676
    assert hashing.text_number("key-0") == 9679884382612836663


def test_what_a_result_is_recognised_by(tmp_path: Path) -> None:
    (tmp_path / "value.py").write_text("x = 1\n")
    file = SourceFile(url="a", size_bytes=1, version="1")
    assert Template(name="t", text="Think.").version == "0c52c23d4015"
    assert value_digest(f"{tmp_path}/value.py:X") == "4953cdd5c411e895"
    assert listing_digest([[file], [file]]) == "dd150cf26f7c590f42ff9cbb11deb9a9"
    assert hashing.fingerprint(['[1,"score",{"a":1},{"source":"x"}]']) == "3808fe91b8c8f32b50b2aba55de1bfac"


def test_purposes_are_independent() -> None:
    assert len({hashing.hashed(purpose, "doc-1") for purpose in Purpose}) == len(Purpose)
    assert len({hashing.hash64(purpose, seed, "doc-1") for purpose in Purpose for seed in (0, 1)}) == 2 * len(Purpose)


def test_lone_surrogates_are_hashed() -> None:
    assert hashing.text_hash("\ud800") != hashing.text_hash("\ud801")
    assert hashing.fingerprint(["a", b"b"]) == hashing.fingerprint(["ab"])


def test_benchmarks_are_recognised_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text('{"question": "What?"}')
    assert digest_of([f"{tmp_path}/quiz.jsonl"]) == "baafdd4d6a0a89096048901548f17279"
