"""Shuffles through files: what Beam's own would give, in bounded memory, with nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.beam_options import beam_options, local_shuffle
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.beam import shuffled_files
from sharding.beam.shuffle import GroupBytes, GroupPartitions, LocalShuffleOptions, PutAside
from sharding.beam.shuffled_files import FiledValues, PartitionWriter
from sharding.errors import MillError, RequestError
from sharding.storage import manifest

TWO_WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


# --- the files --------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(values=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=40))), held=st.integers(1, 200))
def test_every_value_comes_back_in_its_partition(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, bytes]], held: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled_files, "HELD_BYTES", held)
        writer = PartitionWriter(str(tmp_path_factory.mktemp("files") / "new"))
        for partition, value in values:
            writer.add(partition, value)
        paths = writer.close()
    assert paths.keys() == {partition for partition, _ in values}
    for partition, path in paths.items():
        filed = FiledValues((path,))
        expected = [value for own, value in values if own == partition]
        assert list(filed) == expected == list(filed)


def test_what_is_held_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled_files, "HELD_BYTES", 1000)
    writer = PartitionWriter(str(tmp_path))
    for number in range(300):
        writer.add(number % 7, b"x" * 50)
        assert sum(len(value) for held in writer._held.values() for value in held) < 1000 + 58
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 15_000


@pytest.mark.parametrize("cut", [1, 7, 8, 12])
def test_a_file_cut_short_is_an_error(tmp_path: Path, cut: int) -> None:
    writer = PartitionWriter(str(tmp_path))
    writer.add(0, b"first")
    writer.add(0, b"second")
    path = Path(writer.close()[0])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(MillError, match=path.name):
        list(FiledValues((str(path),)))


def test_a_full_disk_is_an_error_that_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = PartitionWriter(str(tmp_path))
    writer.add(3, b"value")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(MillError, match=rf"{tmp_path}/3-.*No space left on device.*--local_shuffle_folder"):
        writer.close()


# --- the transforms ---------------------------------------------------------------------------------------------------


def run(folder: Path | None, build: Callable[[beam.Pipeline], Any], expected: list[Any]) -> None:
    """Run a pipeline and compare what it gives, sorted, with its shuffles in `folder` or in memory."""
    options = beam_options([])
    options.view_as(LocalShuffleOptions).local_shuffle_folder = str(folder) if folder else ""

    def same(found: list[Any]) -> None:
        assert sorted(found) == expected

    with beam.Pipeline(options=options) as pipeline:
        assert_that(build(pipeline), same)


def as_lists(key: Any, values: Iterable[bytes]) -> tuple[Any, list[bytes]]:
    return key, sorted(values)


@pytest.mark.parametrize("in_files", [True, False], ids=["files", "memory"])
def test_partitions_of_several_collections_are_grouped(tmp_path: Path, in_files: bool) -> None:
    def build(pipeline: beam.Pipeline) -> Any:
        several = tuple(
            pipeline | f"Create {n}" >> beam.Create([(n % 2, b"%d" % n), (2, b"")]).with_output_types(tuple[int, bytes])
            for n in range(4)
        )
        return several | GroupPartitions() | beam.MapTuple(as_lists)

    run(tmp_path if in_files else None, build, [(0, [b"0", b"2"]), (1, [b"1", b"3"]), (2, [b""] * 4)])
    assert bool(list(tmp_path.iterdir())) == in_files


@pytest.mark.parametrize("in_files", [True, False], ids=["files", "memory"])
def test_bytes_are_grouped_by_any_key(tmp_path: Path, in_files: bool) -> None:
    keys = ["", "a", "a ", "é日🚀", "x" * 3000, *map(str, range(60))]
    values = [(key, b"%d" % n) for n, key in enumerate(keys * 2)]

    def build(pipeline: beam.Pipeline) -> Any:
        made = pipeline | beam.Create(values).with_output_types(tuple[str, bytes])
        return made | GroupBytes(5) | beam.MapTuple(as_lists)

    expected = {key: sorted(value for own, value in values if own == key) for key in keys}
    run(tmp_path if in_files else None, build, sorted(expected.items()))


@pytest.mark.parametrize("in_files", [True, False], ids=["files", "memory"])
def test_values_put_aside_are_the_same(tmp_path: Path, in_files: bool) -> None:
    values = [(n % 3, b"%d" % n) for n in range(20)]

    def build(pipeline: beam.Pipeline) -> Any:
        return pipeline | beam.Create(values).with_output_types(tuple[int, bytes]) | PutAside()

    run(tmp_path if in_files else None, build, sorted(values))


# --- where they go ----------------------------------------------------------------------------------------------------


def chosen(arguments: tuple[str, ...], url: str) -> str | None:
    options = beam_options(arguments)
    with local_shuffle(options, url):
        return options.view_as(LocalShuffleOptions).local_shuffle_folder


def test_where_the_local_runner_puts_its_shuffles(tmp_path: Path) -> None:
    url = str(tmp_path / "out/stages/.shuffle-score")
    assert str(chosen((), url)).startswith(f"{url}/")
    assert str(chosen((), f"file://{url}")).startswith(f"{url}/")
    assert f"/thoughtmill-{os.getuid()}/shuffle-" in str(chosen((), "memory://bucket/out"))
    scratch = str(chosen((f"--local_shuffle_folder={tmp_path}/scratch",), url))
    assert scratch.startswith(f"{tmp_path}/scratch/thoughtmill-{os.getuid()}/shuffle-")
    assert chosen(("--local_shuffle_folder=",), url) == ""
    other = ("--runner=PortableRunner", "--job_endpoint=localhost:1")
    assert chosen(other, url) is None
    with pytest.raises(RequestError, match="--local_shuffle_folder=/scratch: PortableRunner has shuffles of its own"):
        chosen((*other, "--local_shuffle_folder=/scratch"), url)


@pytest.mark.parametrize("folder", [None, "scratch"])
def test_what_a_killed_run_left_goes_and_what_another_makes_stays(tmp_path: Path, folder: str | None) -> None:
    arguments = (f"--local_shuffle_folder={tmp_path / folder}",) if folder else ()
    url = str(tmp_path / "out/stages/.shuffle-score")
    for _ in range(2):
        options = beam_options(arguments)
        with local_shuffle(options, url):
            mine = Path(str(options.view_as(LocalShuffleOptions).local_shuffle_folder))
            assert mine.stat().st_mode & 0o777 == mine.parent.stat().st_mode & 0o777 == 0o700
            left = mine.parent / "left"
            left.mkdir()
        assert left.exists() and not mine.exists()
    options = beam_options(arguments)
    with local_shuffle(options, url):
        assert not left.exists()
    assert not mine.parent.exists()


def test_a_folder_that_goes_while_it_is_written_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled_files, "HELD_BYTES", 10)
    writer = PartitionWriter(str(tmp_path / "own"))
    writer.add(0, b"x" * 20)
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(MillError, match="was changed or removed while it was written"):
        writer.add(0, b"y" * 20)


def test_few_partitions_are_work_for_many_workers() -> None:
    transform = GroupBytes(1)
    assert transform._num_partitions >= 64
    assert GroupBytes(1000)._num_partitions == 1000


@pytest.mark.slow
@pytest.mark.parametrize("beam_args", [(), TWO_WORKERS], ids=["one", "two"])
def test_a_run_is_the_same_through_files_and_leaves_none(
    tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]], beam_args: tuple[str, ...]
) -> None:
    texts = [f"Document {n % 20} says this and that, more or less. " * (3 + n % 5) for n in range(60)]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"id": f"d{n % 50}", "text": text}) + "\n" for n, text in enumerate(texts)))
    tree = rehearsal_config(str(source))
    tree["pack"] |= {"num_shards": 3, "validation_fraction": 0.2}
    found = []
    for name, extra in (("files", ()), ("memory", ("--local_shuffle_folder=",))):
        config = from_mapping({**tree, "output": str(tmp_path / name), "duplicates": "drop"})
        leftover = tmp_path / name / "stages/.shuffle-score/token/0-of-a-killed-run"
        leftover.parent.mkdir(parents=True)
        leftover.write_bytes(b"\xff" * 8)
        done = mill(config, beam_args=(*beam_args, *extra))
        assert done["score"].counts["duplicates_dropped"] > 0 and done["select"].counts["kept"] > 0
        found.append({s: [e.sha256 for f in done[s].files.values() for e in f] for s in manifest.STAGES})
        if name == "files":
            assert not list((tmp_path / name).rglob(".shuffle*"))
    assert found[0] == found[1]
