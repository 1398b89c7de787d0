"""A run never reads what it writes: an output or a ledger inside of its source is refused at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.own_files import refuse_own_files
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError


@pytest.mark.parametrize(
    ("source", "output", "refused"),
    [
        ("{tmp}/data", "{tmp}/data/out", True),
        ("{tmp}/data/", "{tmp}/data", True),
        ("{tmp}", "{tmp}/data/deep/out", True),
        ("file://{tmp}/data", "{tmp}/data/out", True),
        ("{tmp}/data/**", "{tmp}/data/out", True),
        ("{tmp}/data/*/*", "{tmp}/data/out", True),
        ("{tmp}/data/**/*.arrow", "{tmp}/data/out", True),
        ("{tmp}/link", "{tmp}/data/out", True),
        ("{tmp}/data", "{tmp}/link/out", True),
        ("{tmp}/link/**", "{tmp}/data/out", True),
        ("memory://bucket/raw", "memory://bucket/raw/out", True),
        ("memory://bucket/**", "memory://bucket/out", True),
        ("{tmp}/data/*.jsonl", "{tmp}/data/out", False),
        ("{tmp}/data/**/*.jsonl", "{tmp}/data/out", False),
        ("{tmp}/data", "{tmp}/data-out", False),
        ("{tmp}/data", "{tmp}/data/_out", False),
        ("{tmp}/data/a.jsonl", "{tmp}/data/out", False),
        ("{tmp}/data/raw", "{tmp}/data", False),
        ("memory://bucket/raw", "{tmp}/bucket/raw/out", False),
        ("memory://bucket/raw", "memory://bucket/out", False),
        ("zip://in/*.jsonl::{tmp}/a.zip", "{tmp}/out", False),
        ("simplecache::memory://bucket/**", "memory://bucket/out", True),
        ("simplecache::{tmp}/data", "{tmp}/data/out", True),
        ("ftp://127.0.0.1:1/data", "{tmp}/data/out", False),
    ],
)
def test_what_a_source_would_find(
    tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]], source: str, output: str, refused: bool
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    tree = rehearsal_config(source.format(tmp=tmp_path)) | {"output": output.format(tmp=tmp_path)}
    if refused:
        with pytest.raises(RequestError, match=r"output: .* is inside source.path=.* name a folder outside"):
            refuse_own_files(from_mapping(tree))
    else:
        refuse_own_files(from_mapping(tree))


def test_a_ledger_counts_too(tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    tree = rehearsal_config(f"{tmp_path}/data") | {"ledger": {"path": f"{tmp_path}/data/ledger"}}
    with pytest.raises(RequestError, match=r"ledger.path: .*/data/ledger is inside source.path"):
        refuse_own_files(from_mapping(tree))


def test_nothing_is_begun(tmp_path: Path, rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "some text", "id": "a"}\n')
    config = from_mapping(rehearsal_config(f"{tmp_path}/data") | {"output": f"{tmp_path}/data/out"})
    with pytest.raises(RequestError, match="is inside"):
        mill(config)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.jsonl"]
