"""Uploads to the hub: what the manifest names and the mill wrote beside it; nothing else that lies in the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sharding.errors import MillError
from sharding.shards.export.hub import upload
from tests.foreign_output import manifest_of, rewrite
from tests.packed_output import write_output

SHARDS = {"data/train-00000-of-00001.arrow", "data/validation-00000-of-00001.arrow"}
BESIDE = {"MANIFEST.json", "_SUCCESS", "README.md", "config.yaml"}


class Hub:
    """What the hub's own client would upload of a folder."""

    def __init__(self) -> None:
        self.sent: set[str] | None = None

    def create_repo(self, *_: Any, **__: Any) -> str:
        return "https://hub/acme/corpus"

    def upload_folder(self, *, folder_path: str, allow_patterns: list[str], **_: Any) -> None:
        from huggingface_hub.utils import filter_repo_objects

        paths = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        self.sent = set(filter_repo_objects(paths, allow_patterns=allow_patterns))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with everything beside its shards that must stay at home."""
    output = tmp_path / "out"
    write_output(str(output), documents=30, train_shards=1)
    for name in ("README.md", "config.yaml"):
        (output / name).write_text("of the mill")
    for name in (
        *("run.log", ".env", "key.pem", "report.html", "data/notes.txt", "data/train-00000-of-00001.arrow.bak"),
        *("ledger/part-1-abc.arrow", "stages/select/rejected-00000-of-00001.arrow", "stages/score/MANIFEST.json"),
        *("stages/README.md", "arms/raw/README.md", "data/README.md"),
    ):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("not for others")
    return output


def sent(output: Path, **options: Any) -> set[str] | None:
    hub = Hub()
    upload(str(output), "acme/corpus", api=hub, **options)  # type: ignore[arg-type]
    return hub.sent


def test_what_is_uploaded(output: Path) -> None:
    assert sent(output) == SHARDS | BESIDE
    assert sent(output, report=True) == SHARDS | BESIDE | {"report.html"}


@pytest.mark.parametrize("name", ["*", "**", "data/*", "ledger/*", "?ADME.md", "[a-z]*", "run.log", "data/notes.txt"])
def test_a_name_is_no_pattern_and_no_other_file(output: Path, name: str) -> None:
    rewrite(manifest_of(output), lambda tree: tree["files"]["shards"][0].update(name=name))
    with pytest.raises(MillError, match="which is no name of such a file"):
        sent(output)


@pytest.mark.parametrize(
    "name", ["README.md", "config.yaml", "croissant.json", "pilot.json", "_SUCCESS", "report.html"]
)
def test_a_link_is_not_followed(output: Path, name: str) -> None:
    secret = output.parent / "secret"
    secret.write_text("a key")
    (output / name).unlink(missing_ok=True)
    (output / name).symlink_to(secret)
    with pytest.raises(MillError, match=f"{name} is a link: only files of the output itself are uploaded"):
        sent(output, report=True)


def test_a_shard_is_what_the_manifest_says_or_stays(output: Path) -> None:
    [shard, *_] = sorted((output / "data").glob("train-*.arrow"))
    kept = output.parent / "blob"
    shard.rename(kept)
    shard.symlink_to(kept)
    assert sent(output) == SHARDS | BESIDE, "as in the hub's own cache"
    kept.write_text("a key")
    with pytest.raises(MillError, match="its bytes are not those of its manifest"):
        sent(output)


def test_the_report_is_asked_for_by_an_option(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cli import app
    from sharding.shards.export import hub

    asked: list[bool] = []
    monkeypatch.setattr(hub, "upload", lambda output, repo, *, report: asked.append(report))
    for options in ([], ["--with-report"]):
        done = CliRunner().invoke(app, ["export", str(output), "--to", "hub", "--target", "acme/corpus", *options])
        assert done.exit_code == 0, done.output
    assert asked == [False, True]
    done = CliRunner().invoke(
        app, ["export", str(output), "--to", "olmo", "--target", str(output.parent / "x"), "--with-report"]
    )
    assert done.exit_code and not (output.parent / "x").exists()
