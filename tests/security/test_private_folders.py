"""On a shared machine: what goes into the temporary folder is this user's alone, and nothing planted is followed."""

import asyncio
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from augment.engines import vllm_start
from augment.feeding import registry
from augment.feeding.shared.owner import EngineHost
from pipelines.beam_options import beam_options, local_shuffle
from pipelines.run import mill
from pipelines.verify.splits import SeenDocuments
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.beam.shuffle import shuffle_folder
from sharding.beam.shuffled_files import PartitionWriter
from sharding.errors import MillError
from sharding.storage.private import private_folder

NAME = f"thoughtmill-{os.getuid()}"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, which all users of the machine may write to."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def a_link(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def a_link_to_nothing(place: Path, victim: Path) -> None:
    place.symlink_to(victim / "absent")


def a_file(place: Path, victim: Path) -> None:
    place.touch(0o600)


def a_folder_for_all(place: Path, victim: Path) -> None:
    place.mkdir()
    place.chmod(0o755)


def a_folder_of_another_user(place: Path, victim: Path) -> None:
    place.mkdir(0o700)
    try:
        os.chown(place, 12345, 12345)
    except PermissionError:
        pytest.skip("only root can make one")


def uses_of(tmp_path: Path) -> dict[str, Callable[[], Any]]:
    """All that puts something into the temporary folder."""

    def shuffle() -> None:
        with local_shuffle(beam_options(()), "memory://private/out"):
            pass

    def start_turn() -> None:
        async def start() -> None:
            async with vllm_start.start_turn():
                pass

        asyncio.run(start())

    return {
        "shuffle": shuffle,
        "engine host": lambda: EngineHost("job", registry.Registry()),
        "engine start": start_turn,
        "upload": lambda: storage.write_bytes("memory://private/file", b"x"),
        "verify": lambda: SeenDocuments(1),
    }


USES = ["shuffle", "engine host", "engine start", "upload", "verify"]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "plant", [a_link, a_link_to_nothing, a_file, a_folder_for_all, a_folder_of_another_user], ids=lambda f: f.__name__
)
def test_what_is_planted_is_refused_and_not_followed(
    shared: Path, tmp_path: Path, plant: Callable[[Path, Path], None], use: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis").touch()
    plant(shared / NAME, victim)
    with pytest.raises(MillError, match=rf"{shared / NAME} must be a folder of yours .* TMPDIR names another place"):
        uses_of(tmp_path)[use]()
    assert [path.name for path in victim.iterdir()] == ["thesis"]


@pytest.mark.parametrize("use", USES)
def test_what_is_made_is_this_users_alone(shared: Path, tmp_path: Path, use: str) -> None:
    before = os.umask(0)
    try:
        kept = uses_of(tmp_path)[use]()
        [folder] = shared.iterdir()
        assert folder.name == NAME and stat.S_IMODE(folder.stat().st_mode) == 0o700
        del kept
    finally:
        os.umask(before)


@pytest.mark.parametrize("where", ["memory://private/out", "{tmp}/out/stages/.shuffle-score", "{tmp}/chosen"])
def test_what_is_shuffled_is_read_by_nobody_else(shared: Path, tmp_path: Path, where: str) -> None:
    chosen = where == "{tmp}/chosen"
    options = beam_options([f"--local_shuffle_folder={tmp_path}/chosen"] if chosen else [])
    with local_shuffle(options, "memory://private/out" if chosen else where.format(tmp=tmp_path)):
        folder = Path(str(shuffle_folder(options)))
        writer = PartitionWriter(str(folder))
        writer.add(3, b"a secret text")
        [path] = writer.close().values()
        assert Path(path).parent == folder
        assert any(stat.S_IMODE(parent.stat().st_mode) == 0o700 for parent in Path(path).parents)
    assert not folder.exists()


def test_a_link_in_place_of_a_shuffle_is_not_followed(tmp_path: Path) -> None:
    victim, own = tmp_path / "victim", tmp_path / "out" / "stages" / ".shuffle-score"
    victim.mkdir()
    own.parent.mkdir(parents=True)
    own.symlink_to(victim)
    with (
        pytest.raises(MillError, match=rf"cannot make {own}: File exists"),
        local_shuffle(beam_options(()), str(own)),
    ):
        pass
    assert victim.is_dir() and not list(victim.iterdir())


def test_a_start_that_never_ends_is_not_waited_for_without_end(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_start, "_START_TURN_S", 0.1)

    async def start_two() -> None:
        async with vllm_start.start_turn():
            with pytest.raises(MillError, match=r"has been starting for .* and holds .*engine-start.turn: end its"):
                async with vllm_start.start_turn():
                    pass
        async with vllm_start.start_turn():
            pass

    asyncio.run(start_two())
    assert (shared / NAME / "engine-start.turn").exists()


def test_no_folder_for_temporary_files_is_one_message(
    monkeypatch: pytest.MonkeyPatch, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    config = from_mapping(rehearsal_config(write_jsonl([{"text": "some text"}])))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/nowhere"])
    for act in (lambda: mill(config, stages=["score"]), private_folder):
        with pytest.raises(MillError, match=r"no folder takes temporary files, or all are full: .* TMPDIR"):
            act()
    assert not Path(config.output).exists(), "nothing was begun"


def test_a_full_one_is_named_when_a_file_goes_to_a_store(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MillError, match=rf"cannot write memory://private/x by way of {shared / NAME}, which TMPDIR"):
        storage.write_bytes("memory://private/x", b"x")
    assert not list((shared / NAME).iterdir())


def test_what_killed_uploads_left_goes(shared: Path) -> None:
    left, name = private_folder() / f".x.{'0' * 32}.tmp", "memory://private/y"
    left.touch()
    storage.write_bytes(name, b"x")
    assert left.exists()
    os.utime(left, (1, 1))
    storage.write_bytes(name, b"x")
    assert not left.exists() and fsspec.filesystem("memory").cat_file("/private/y") == b"x"
