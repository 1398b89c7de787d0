"""Decontamination: what is a hit, wherever it stands and however it is written; and benchmark files that are wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import fsspec
import numpy as np
import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem
from hypothesis import assume, given
from hypothesis import strategies as st

from augment.selection.benchmarks import files
from augment.selection.benchmarks.index import BenchmarkIndex, DecontaminationConfig, index_digest, load_index
from augment.selection.word_runs import HALVES, blocks_of, runs_of
from augment.selection.words import words_of
from sharding.errors import MillError, RequestError
from tests.test_gates import JAPANESE

QUESTION = (
    "Natalia packed forty-eight small boxes in April, and then she packed half as many in May. "
    "How many boxes did Natalia pack altogether in April and May?"
)
TEXT = topics["assignment"][:3000]


def index_of(*texts: str, **config: int) -> BenchmarkIndex:
    return BenchmarkIndex([("quiz", number, text) for number, text in enumerate(texts)], **config)


def words(count: int, prefix: str = "w") -> str:
    return " ".join(f"{prefix}{number}" for number in range(count))


def test_benchmarks_are_read_again_only_where_they_may_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_FRESH_S", -1.0)  # of a file that was written just now, to wait for nothing
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps({"question": QUESTION}))
    config, opened = DecontaminationConfig(paths=(str(path),)), []
    whole = LocalFileSystem.open

    def counting(self: LocalFileSystem, path: str, *args: object, **options: object) -> object:
        opened.append(path)
        return whole(self, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "open", counting)
    first = index_digest(config)
    assert index_digest(config) == first and len(opened) == 1
    before, text = path.stat(), json.dumps({"question": QUESTION.replace("forty", "fifty")})
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems go by steps
        path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert index_digest(config) != first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all of it", QUESTION),
        ("at the start", f"{QUESTION} {TEXT}"),
        ("in the middle", f"{TEXT} {QUESTION} {TEXT}"),
        ("at the end", f"{TEXT} {QUESTION}"),
        ("in other case", f"{TEXT} {QUESTION.upper()} {TEXT}"),
        ("without punctuation", f"{TEXT} {QUESTION.replace(',', '').replace('.', '').replace('-', ' ')} {TEXT}"),
        ("over lines, emphasised", f"{TEXT}\n> *{'* _'.join(QUESTION.split())}_\n{TEXT}"),
        ("wide letters", f"{TEXT} {''.join(chr(ord(c) + 0xFEE0) if '!' < c <= '~' else c for c in QUESTION)} {TEXT}"),
        ("thirteen words of it", f"{TEXT} {' '.join(QUESTION.split()[3:17])} {TEXT}"),
    ],
)
def test_hits(name: str, text: str) -> None:
    assert index_of(QUESTION).hits(text) == ["quiz"]


@pytest.mark.parametrize(
    "text",
    [TEXT, "", "...", JAPANESE, f"{TEXT} {' '.join(QUESTION.split()[:11])} {TEXT}", " ".join(QUESTION.split()[::-1])],
)
def test_no_hits(text: str) -> None:
    assert index_of(QUESTION).hits(text) == []


@pytest.mark.parametrize("size", [2, 8, 13, 20])
@pytest.mark.parametrize("at", [0, 7, 27])
def test_so_many_words_in_common_are_a_hit_and_one_less_is_none(size: int, at: int) -> None:
    benchmark = words(40).split()
    index = index_of(" ".join(benchmark), ngram_words=size, min_words=1)
    common = benchmark[at : at + size]
    assert index.hits(f"some {' '.join(common)} others") == (["quiz"] if len(common) == size else [])
    assert index.hits(f"some {' '.join(common[: size - 1])} others") == []
    assert index.hits(f"some {' '.join(common[1:])} others") == []


@pytest.mark.parametrize(
    ("benchmark", "ngram"),
    [
        ("富士山の頂上では水が八十七度ほどで沸くので、圧力鍋を使わなければ米に芯が残ってしまうことが多い。", 26),
        ("대한민국의수도는서울이며한강이도시를가로질러흐르고있다는사실을누구나알고있다", 26),
        ("Когда две гири разной массы падают с одной высоты, кажется очевидным, что тяжёлая упадёт первой из них", 13),
        ("जब दो अलग-अलग भार की वस्तुएँ एक ही ऊँचाई से गिरती हैं तो वे एक साथ ज़मीन पर पहुँचती हैं", 13),
    ],
)
def test_other_scripts(benchmark: str, ngram: int) -> None:
    index = index_of(benchmark)
    spaced = words_of(benchmark)
    between = "" if ngram == 26 else " "
    assert index.hits(f"{TEXT}{benchmark}{TEXT}" if ngram == 26 else f"{TEXT} {benchmark} {TEXT}") == ["quiz"]
    assert index.hits(between.join(spaced[2 : 2 + ngram])) == ["quiz"]
    assert index.hits(between.join(spaced[2 : 2 + ngram - 1])) == []


def test_short_texts_are_looked_for_as_a_whole() -> None:
    index = index_of(words(8), words(12, "v"), words(7, "u"))
    assert index.hits(f"a {words(8)} b") == ["quiz"]
    assert index.hits(f"a {words(7)} b") == []
    assert index.hits(f"a {words(12, 'v')} b") == ["quiz"]
    assert index.hits(f"a {words(11, 'v')} b") == []
    assert index.hits(words(7, "u")) == []
    assert index.describe() == {"quiz": {"records": 3, "texts": 3, "ngrams": 2, "too_short": 1}}


def test_a_run_of_several_benchmarks_names_all() -> None:
    texts = [("b", 0, words(13)), ("a", 1, words(20)), ("c", 2, words(13, "v")), ("c", 2, "too short")]
    index = BenchmarkIndex(texts)
    assert index.hits(f"x {words(13)} y") == ["a", "b"]
    assert index.hits(f"x {words(20)} y {words(13, 'v')} z") == ["a", "b", "c"]
    assert index.hits(words(20)[-60:]) == ["a"]
    assert index.describe()["c"] == {"records": 1, "texts": 2, "ngrams": 1, "too_short": 1}
    assert index.describe()["a"]["ngrams"] == 8


ANSWER = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 1,072"
)
LICENCE = (
    'Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance '
    "with the License."
)
SHORT_ANSWER = "He ate 4*2=<<4*2=8>>8 of the 20-8=<<20-8=12>>12 plums.\n#### 12"


@pytest.mark.parametrize(
    ("benchmark", "text"),
    [
        (ANSWER, "Natalia sold 48/2 = 24 clips in May. Natalia sold 48+24 = 72 clips altogether."),
        (ANSWER, "natalia sold 48/2 = 24 clips in may. natalia sold 48+24 = 72 clips altogether. #### 1072"),
        (ANSWER, ANSWER),
        (SHORT_ANSWER, "He ate 4*2=8 of the 20-8=12 plums."),
        (SHORT_ANSWER, SHORT_ANSWER),
        (f"{LICENCE}\n{QUESTION}", QUESTION),
        (f"{LICENCE} {QUESTION}", f"{' '.join(LICENCE.split()[-5:])} {' '.join(QUESTION.split()[:8])}"),
    ],
)
def test_texts_as_they_may_be_written_elsewhere(benchmark: str, text: str) -> None:
    assert index_of(benchmark).hits(f"{TEXT} {text} {TEXT}") == ["quiz"]


@pytest.mark.parametrize(
    ("benchmark", "text"),
    [
        ("candidate(20) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]", str(list(range(30)))),
        ("assert is_sorted([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])", "0 " * 40),
        ("a b c d e f g h i j k l m n o p q r s t", "The letters: a b c d e f g h i j k l m n o p q r s t u v."),
        (f"{LICENCE} Sort the list.", f"# Copyright\n# {LICENCE}\n"),
        (f"# {LICENCE}", LICENCE),
        (f"{QUESTION} {LICENCE}", f"In May. {LICENCE}"),
    ],
)
def test_numbers_letters_and_licences_are_no_hits(benchmark: str, text: str) -> None:
    assert index_of(benchmark).hits(f"{TEXT} {text} {TEXT}") == []


def test_texts_that_tell_nothing_are_counted_as_not_looked_for() -> None:
    index = index_of("1 2 3 4 5 6 7 8 9 10 11 12 13 14", LICENCE, QUESTION)
    assert index.describe()["quiz"]["too_short"] == 2


def test_an_index_of_nothing() -> None:
    assert index_of().hits(TEXT) == []
    assert index_of("short").hits(TEXT) == []


telling = st.lists(st.sampled_from([*words(5).split(), "ß", "日本", "İ", "é"]), max_size=30).map(" ".join)
"""Without numbers and single letters, which alone are not looked for."""

texts = st.text(max_size=60) | telling


@given(texts, telling, texts, st.integers(2, 13), st.integers(1, 8))
def test_a_text_that_contains_a_benchmarks_text_hits(before: str, text: str, after: str, size: int, least: int) -> None:
    least = min(size, least)
    assume(runs_of(text).size_halves >= HALVES * least)
    index = index_of(text, ngram_words=size, min_words=least)
    assert index.hits(f"{before} {text} {after}") == ["quiz"]
    assert index.hits(f"{before}\n{text.upper().lower()}\n{after}") or words_of(text.upper().lower()) != words_of(text)


@given(texts, telling, st.integers(2, 13))
def test_hits_are_what_a_plain_search_finds(text: str, benchmark: str, size: int) -> None:
    def runs(of: str) -> set[tuple[str, ...]]:
        found, spaced = set(), words_of(of)
        for first in range(len(spaced)):
            for last in range(first + 1, len(spaced) + 1):
                halves = sum(1 if word in "日本" else 2 for word in spaced[first:last])
                if halves >= 2 * size:
                    found.add(tuple(spaced[first:last]))
                    break
        return found

    assume(not any(ord(c) >= 0x0E00 for c in (text + benchmark).replace("日", "").replace("本", "")))
    index = index_of(benchmark, ngram_words=size, min_words=size)
    assert bool(index.hits(text)) == bool(runs(text) & runs(benchmark))


@given(st.lists(st.sampled_from(["a", "b", "水", " "]), max_size=200), st.integers(1, 20))
def test_blocks_hold_every_run_of_the_whole(parts: list[str], size: int) -> None:
    text = " ".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("augment.selection.word_runs.PIECE_CHARACTERS", 7)
        found = [block.numbers(size) for block in blocks_of(text, size)]
    joined = np.concatenate([np.empty(0, np.uint64), *found])
    assert set(joined.tolist()) == set(runs_of(text).numbers(size).tolist())


def test_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("augment.selection.word_runs.PIECE_CHARACTERS", 50)
    for at in range(0, 400, 7):
        assert index_of(QUESTION).hits(f"{TEXT[:at]} {QUESTION} {TEXT}") == ["quiz"]


def test_numbers_are_the_same_in_every_process() -> None:
    code = (
        "from augment.selection.word_runs import runs_of; "
        f"print(runs_of({(QUESTION + JAPANESE)!r}).numbers(26).tolist())"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, env={"PYTHONHASHSEED": seed}, check=True
        )
        assert json.loads(done.stdout) == runs_of(QUESTION + JAPANESE).numbers(26).tolist()


def test_runs_differ() -> None:
    numbers = runs_of(words(20_000)).numbers(26)
    swapped = runs_of(" ".join(reversed(words(20_000).split()))).numbers(26)
    assert len(np.unique(np.concatenate([numbers, swapped]))) == 2 * (20_000 - 12)


def test_the_filter_and_the_index_stay_small() -> None:
    index = index_of(words(50_000))
    assert index.size_bytes <= 15 * 50_000


def write(path: Path, records: list[object]) -> str:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return str(path)


RECORDS: list[object] = [
    {"question": QUESTION, "answer": "72", "options": [words(9, "o"), words(13, "p"), 5], "level": 3},
    {"question": words(30, "q"), "answer": words(13, "r")},
]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_files(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"math.test.{ending}", RECORDS)
    index = load_index(DecontaminationConfig(paths=(str(tmp_path / f"*.{ending}"),)))
    for text in (QUESTION, words(9, "o"), words(13, "p"), words(13, "r")):
        assert index.hits(text) == ["math.test"]
    assert index.describe() == {"math.test": {"records": 2, "texts": 6, "ngrams": 16 + 1 + 1 + 18 + 1, "too_short": 1}}


def test_named_fields_alone_are_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "math.jsonl", RECORDS)
    index = load_index(DecontaminationConfig(paths=(path,), fields=("answer", "options")))
    assert index.hits(QUESTION) == []
    assert index.hits(words(9, "o")) == index.hits(words(13, "r")) == ["math"]


def test_any_store_and_files_named_twice() -> None:
    with fsspec.open("memory://quizzes/history.jsonl", "wt") as file:
        file.write(json.dumps({"q": QUESTION}) + "\n\n" + json.dumps({"q": words(13)}) + "\n")
    config = DecontaminationConfig(paths=("memory://quizzes/*.jsonl", "memory://quizzes/history.jsonl"))
    assert load_index(config).describe()["history"]["records"] == 2
    assert load_index(config) is load_index(config)


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (None, (), r"select\.decontaminate\.paths: no file matches '.*quiz\.jsonl'"),
        (b"", (), r"select\.decontaminate\.paths: .*quiz\.jsonl has no records"),
        (b'{"q": "a"}\n{"q": \n', (), r"select\.decontaminate\.paths: .*quiz\.jsonl:2 is no JSON"),
        (b'{"q": "\xff"}\n', (), r"select\.decontaminate\.paths: .*quiz\.jsonl:1 is no JSON"),
        (b'{"q": "a"}\n\n["a"]\n', (), r"select\.decontaminate\.paths: .*quiz\.jsonl:3 holds list, not an object"),
        (
            b'{"q": "a"}\n{"q": "b"}\n',
            ("question", "a"),
            r"fields: no record of .*quiz\.jsonl has text in 'question' or 'a'",
        ),
        (b'{"q": 1}\n{"q": " "}\n', (), r"fields: no record of .*quiz\.jsonl has text in any field"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, content: bytes | None, fields: tuple[str, ...], message: str) -> None:
    path = tmp_path / "quiz.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        load_index(DecontaminationConfig(paths=(str(path),), fields=fields))


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "quiz.jsonl.zst", [{"q": f"{number} {QUESTION}"} for number in range(2000)]))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MillError, match=r"select\.decontaminate\.paths: cannot read .*quiz\.jsonl\.zst"):
        load_index(DecontaminationConfig(paths=(str(path),)))


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    def digest(folder: str, name: str, records: list[object]) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder / name, records)
        found = index_digest(DecontaminationConfig(paths=(str(tmp_path / folder / "*"),)))
        (tmp_path / folder / name).unlink()
        return found

    first = digest("a", "quiz.jsonl", RECORDS)
    assert first == digest("b", "quiz.jsonl", RECORDS)
    assert len({first, digest("a", "other.jsonl", RECORDS), digest("a", "quiz.jsonl", RECORDS[:1])}) == 3
    with pytest.raises(RequestError, match="no file matches"):
        index_digest(DecontaminationConfig(paths=(str(tmp_path / "a" / "*"),)))


def test_a_minimum_over_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="min_words 8 is over ngram_words 5"):
        DecontaminationConfig(paths=("x",), ngram_words=5)
