"""What may come to nothing: files and records of which none became a document, told by name and bounded; and tables."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tokenizers import Tokenizer, normalizers
from typer.testing import CliRunner

from pipelines.cli import summary
from pipelines.cli.application import app
from pipelines.documents.quarantine import quarantine
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.records.types import Quarantined
from sharding.sources import Source, SourceConfig, shares
from sharding.sources.shares import BarrenFile, FileTally, SourceTally
from sharding.storage import manifest
from tests.source_files import as_jsonl, as_parquet, put, read_all, resolved

Config = Callable[..., dict[str, Any]]

RECORDS = [{"id": f"r{i}", "text": f"Text of number {i}."} for i in range(40)]


def scored(config: Config, path: Path, **keys: Any) -> manifest.Manifest:
    source = {"path": str(path), "id_field": "id", **keys}
    return mill(from_mapping(config("") | {"source": source}), stages=["score"])["score"]


# --- pure -------------------------------------------------------------------------------------------------------------


def test_tallies_are_the_same_in_any_order() -> None:
    pieces = [
        FileTally(
            source=0, file=f"f{n % 7}", documents=n % 3 and n, refused={"empty": n % 4} if n % 4 else {}, first=f"{n}"
        )
        for n in range(30)
    ]

    def total(order: list[FileTally]) -> SourceTally:
        files = [shares.of_file(piece for piece in order if piece.file == name) for name in {p.file for p in order}]
        halves = [SourceTally(), SourceTally()]
        for number, file in enumerate(files):
            shares.add_file(halves[number % 2], file)
        shares.add_up(*halves)
        return halves[0]

    first = total(pieces)
    assert (first.files, first.documents) == (7, sum(p.documents for p in pieces))
    for seed in range(5):
        shuffled = random.Random(seed).sample(pieces, len(pieces))
        assert total(shuffled) == first


@pytest.mark.parametrize(
    ("barren", "files", "limit", "refused"),
    [(0, 3, 0, False), (1, 20, 0.05, False), (1, 19, 0.05, True), (3, 3, 1, False), (1, 1000, 0, True)],
)
def test_the_share_of_files_is_exact(barren: int, files: int, limit: float, refused: bool) -> None:
    source = Source("sources.1", SourceConfig(path="p", max_quarantined=limit))
    shown = [BarrenFile(file="raw/b.jsonl", why="it looks like one JSON array")]
    if refused:
        with pytest.raises(MillError, match=r"sources\.1\.path: raw/b\.jsonl: none of it became a document; it looks "):
            shares.check_files(source, barren, files, shown)
    else:
        shares.check_files(source, barren, files, shown)


COUNTS = {
    "documents": 88,
    "quarantined": 12,
    "quarantined.empty": 2,
    "quarantined.not_in_vocabulary": 10,
    "duplicates_dropped": 0,
}


@pytest.mark.parametrize(("dropped", "named"), [(0, "sources.1: 10 of 50"), (1, "sources.0: 6 of 50")])
def test_what_the_tokenizer_refuses_counts_for_its_source(dropped: int, named: str) -> None:
    sources = [Source(f"sources.{n}", SourceConfig(name=f"s{n}", path="p")) for n in range(2)]
    tallies = [SourceTally(documents=48, refused={"empty": 2}), SourceTally(documents=50)]
    counts = COUNTS | {"source.s0.documents": 48, "source.s1.documents": 40, "duplicates_dropped": dropped}
    with pytest.raises(MillError, match=rf"{named}.*not_in_vocabulary 10.*scored again.*quarantine-\*"):
        shares.check_scored(sources, tallies, counts, "out/quarantine-*.arrow")


# --- at the listing ---------------------------------------------------------------------------------------------------

HOPELESS = {
    "one JSON array": json.dumps(RECORDS).encode(),
    "one JSON array, pretty": json.dumps(RECORDS, indent=2).encode(),
    "one JSON array, packed": gzip.compress(b"[" + b",\n".join(json.dumps(r).encode() for r in RECORDS) + b"]"),
    "an empty file": b"",
}


@pytest.mark.parametrize("what", HOPELESS)
def test_a_file_that_holds_nothing_is_an_error_before_any_work(tmp_path: Path, what: str) -> None:
    put(str(tmp_path / "a.jsonl"), as_jsonl(RECORDS))
    put(str(tmp_path / "b.jsonl"), HOPELESS[what])
    looks = what.partition(",")[0]
    with pytest.raises(MillError, match=rf"source\.path: .*/b\.jsonl: none of it .* like {looks}.*1 of 2 files"):
        resolved(SourceConfig(path=str(tmp_path)))


def test_below_the_share_it_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(str(tmp_path / "a.jsonl"), as_jsonl(RECORDS))
    put(str(tmp_path / "b.jsonl"), json.dumps(RECORDS).encode())
    found = read_all(SourceConfig(path=str(tmp_path), max_quarantined=0.5))
    assert len(found) == len(RECORDS) + 1
    assert "b.jsonl: none of it will become a document; it looks like one JSON array" in caplog.text


def test_one_bad_line_at_the_beginning_is_no_array(tmp_path: Path) -> None:
    put(str(tmp_path / "a.jsonl"), b'[{"id": "x"}]\n' + as_jsonl(RECORDS))
    assert sum(isinstance(record, Quarantined) for record in read_all(SourceConfig(path=str(tmp_path)))) == 1


@pytest.mark.parametrize("names", [["a.jsonl"], ["a.jsonl", "b.jsonl", "c.jsonl"]])
def test_a_source_of_empty_files_has_no_records(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        put(str(tmp_path / name), b"")
    with pytest.raises(RequestError, match=r"a\.jsonl is empty.*: the source has no records"):
        resolved(SourceConfig(path=str(tmp_path), max_quarantined=1))


# --- through the score stage ------------------------------------------------------------------------------------------

BARREN = {
    "CR line ends": (
        as_jsonl(RECORDS).replace(b"\n", b"\r"),
        "a file with CR line ends; its first record is .*malformed",
    ),
    "other fields": (as_jsonl([{"id": 1, "body": "x"}]), "JSON lines with the fields 'id', 'body'; .*missing_text"),
    "over lines": (
        b"\n".join(json.dumps(r, indent=1).encode() for r in RECORDS[:2]),
        "JSON objects over several lines",
    ),
    "blank": (b"\n \n\n", "blank lines; it has no records"),
    "an error": (b'{"error": "rate limited"}\n', "JSON lines with the fields 'error'"),
    "zeros": (bytes(100), "a file of zero bytes only"),
}


@pytest.mark.parametrize("what", BARREN)
def test_a_file_of_which_nothing_became_a_document_is_told(tmp_path: Path, rehearsal_config: Config, what: str) -> None:
    data, said = BARREN[what]
    (tmp_path / "raw").mkdir()
    put(str(tmp_path / "raw" / "a.jsonl"), as_jsonl(RECORDS))
    put(str(tmp_path / "raw" / "b.jsonl"), data)
    with pytest.raises(MillError, match=rf"(?s)raw/b\.jsonl: none of it became a document; it looks like {said}"):
        scored(rehearsal_config, tmp_path / "raw")


@pytest.mark.slow
def test_it_is_in_the_manifest_the_summary_and_inspect(tmp_path: Path, rehearsal_config: Config) -> None:
    (tmp_path / "raw").mkdir()
    put(str(tmp_path / "raw" / "a.jsonl"), as_jsonl(RECORDS))
    put(str(tmp_path / "raw" / "b.jsonl"), b'{"error": "rate limited"}\n')
    source = {"path": str(tmp_path / "raw"), "id_field": "id", "max_quarantined": 0.5}
    config = from_mapping(rehearsal_config("") | {"source": source})
    done = mill(config)["score"]
    assert done.facts["sources"][0]["barren"] == 1 and done.facts["sources"][0]["documents"] == len(RECORDS)
    said = f"none of file://{tmp_path}/raw/b.jsonl became a document: it looks like JSON lines with the fields 'error'"
    assert said in "\n".join(line.plain for line in quarantine(config.output, 3))
    shown = CliRunner().invoke(app, ["inspect", config.output, "--quarantined"])
    assert shown.exit_code == 0 and "missing_text: 1" in shown.output and "rate limited" in shown.output
    from rich.console import Console

    console = Console(width=400, record=True)
    console.print(summary.render(config.output))
    text = console.export_text()
    assert said in text and f"thoughtmill inspect {config.output} --quarantined" in text


@pytest.mark.parametrize("num_bad", [2, 3])
def test_the_share_of_records_is_held_before_anything_is_scored(
    tmp_path: Path, rehearsal_config: Config, num_bad: int
) -> None:
    data = as_jsonl(RECORDS) + b'{"id": "x", "text": ""}\n' * num_bad
    put(str(tmp_path / "a.jsonl"), data)
    if num_bad == 2:
        assert scored(rehearsal_config, tmp_path / "a.jsonl").counts["quarantined"] == 2
    else:
        with pytest.raises(
            MillError, match=r"source: 3 of 43 records went to quarantine \(empty 3\).*a\.jsonl:41: empty"
        ):
            scored(rehearsal_config, tmp_path / "a.jsonl")


def test_a_tokenizer_that_refuses_most_is_an_error_and_nothing_is_scored_again(
    tmp_path: Path, rehearsal_config: Config, byte_tokenizer: str
) -> None:
    (tmp_path / "tokenizer").mkdir()
    tokenizer = Tokenizer.from_file(f"{byte_tokenizer}/tokenizer.json")
    tokenizer.normalizer = normalizers.Replace("Q", "q")
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    put(str(tmp_path / "a.jsonl"), as_jsonl([{"id": str(i), "text": "lower" if i % 5 else "Q up"} for i in range(20)]))
    tree = rehearsal_config("") | {"tokenizer": str(tmp_path / "tokenizer")}
    source = {"path": str(tmp_path / "a.jsonl"), "id_field": "id"}
    with pytest.raises(MillError, match=r"source: 4 of 20 records went to quarantine .*max_quarantined is 0\.05"):
        mill(from_mapping(tree | {"source": source}), stages=["score"])
    before = manifest.require(str(tree["output"]), "score")
    tree["source"] = source | {"max_quarantined": 0.2}
    assert mill(from_mapping(tree), stages=["score"])["score"] == before


# --- tables -----------------------------------------------------------------------------------------------------------


def delta(folder: Path) -> str:
    (folder / "_delta_log").mkdir(parents=True)
    (folder / "_delta_log" / "00000000000000000000.json").write_text("{}\n")
    (folder / "year=2024").mkdir()
    put(str(folder / "year=2024" / "part-0.parquet"), as_parquet(RECORDS))
    return "a Delta table"


def iceberg(folder: Path) -> str:
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / "00001-0a.metadata.json").write_text("{}")
    (folder / "data").mkdir()
    put(str(folder / "data" / "00000-0.parquet"), as_parquet(RECORDS))
    put(str(folder / "data" / "00000-1.parquet"), as_parquet(RECORDS))
    return "an Iceberg table"


def hudi(folder: Path) -> str:
    (folder / ".hoodie").mkdir(parents=True)
    (folder / ".hoodie" / "hoodie.properties").write_text("hoodie.table.name=t\n")
    put(str(folder / "f1_0.parquet"), as_parquet(RECORDS))
    put(str(folder / "f1_1.parquet"), as_parquet(RECORDS))
    return "a Hudi table"


@pytest.mark.parametrize("make", [delta, iceberg, hudi])
def test_a_table_is_refused_by_name_wherever_it_is_entered(tmp_path: Path, make: Callable[[Path], str]) -> None:
    said = make(tmp_path / "lake" / "t")
    deeper = next(path.parent for path in (tmp_path / "lake" / "t").rglob("*.parquet"))
    (tmp_path / "link").symlink_to(tmp_path / "lake" / "t")
    for path in (tmp_path / "lake" / "t", tmp_path / "lake", deeper, tmp_path / "link"):
        with pytest.raises(RequestError, match=rf"source\.path: .* is {said}: .*write its live rows as Parquet"):
            resolved(SourceConfig(path=str(path)))
    for pattern in (f"{deeper}/*.parquet", f"{tmp_path}/**/*.parquet", f"{tmp_path}/*/*/**/*0.parquet"):
        with pytest.raises(RequestError, match=said):
            resolved(SourceConfig(path=pattern))
    with pytest.raises(RequestError, match=said):
        resolved(SourceConfig(path=str(deeper), format="huggingface"))


@pytest.mark.parametrize("make", [delta, iceberg, hudi])
def test_a_table_in_a_store_is_refused_too(tmp_path: Path, make: Callable[[Path], str]) -> None:
    said = make(tmp_path / "t")
    fs = MemoryFileSystem()
    fs.put(str(tmp_path / "t"), f"/lake-{make.__name__}/t", recursive=True)
    for path in (f"memory://lake-{make.__name__}/t", f"memory://lake-{make.__name__}"):
        with pytest.raises(RequestError, match=said):
            resolved(SourceConfig(path=path))


def test_a_table_is_found_from_partitions_of_any_depth(tmp_path: Path) -> None:
    delta(tmp_path / "t")
    deep = tmp_path / "t" / "y=2024" / "m=1" / "d=2" / "h=3" / "s=4"
    deep.mkdir(parents=True)
    put(str(deep / "a.parquet"), as_parquet(RECORDS))
    with pytest.raises(RequestError, match="a Delta table"):
        resolved(SourceConfig(path=str(deep)))


def test_a_folder_of_that_name_makes_no_table(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    put(str(tmp_path / "metadata" / "notes.jsonl"), as_jsonl(RECORDS))
    put(str(tmp_path / "my_delta_log.jsonl"), as_jsonl(RECORDS))
    assert len(read_all(SourceConfig(path=str(tmp_path)))) == 2 * len(RECORDS)
