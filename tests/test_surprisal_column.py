"""`pack.surprisal`: what the score stage gave every source token, from the segments to what trainers read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain.python as grain
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import preflight
from pipelines.pack import Pack
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import RequestError
from sharding.packing.recovery import items_of
from sharding.records.rows import MaskedRow, TokenType
from sharding.records.types import ScoredSegment
from sharding.shards.dataset import PackedDataset, collate
from sharding.shards.export import export
from sharding.shards.export.arrayrecord import parse
from sharding.shards.grain_sources import DocumentSource, RowSource
from sharding.shards.rows import IGNORED_LABEL
from sharding.storage import manifest
from sharding.storage.arrow_files import read_schema

PAGE = Path(__file__).parent.parent / "docs" / "formats.md"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    """A run whose shards have the column and a mask; documents are cut, and have thoughts in them."""
    from tests.conftest import rehearsal_tree

    folder = tmp_path_factory.mktemp("surprisal")
    lines = [f'{{"id": "{n}", "text": "{"Hard words, such as zygote " * (2 + 7 * (n % 5))}"}}\n' for n in range(20)]
    (folder / "source.jsonl").write_text("".join(lines), encoding="utf-8")
    tree = rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl"), layout="after_segment")
    tree["pack"] |= {"surprisal": True, "sequence_length": 128, "num_shards": 3, "loss_mask": "no_delimiters"}
    config = from_mapping(tree)
    mill(config)
    return config.output


def scored(output: str) -> dict[str, np.ndarray]:
    """Nats of each document's tokens, as the score stage wrote them."""
    found: dict[str, list[ScoredSegment]] = {}
    for url in manifest.file_urls(output, manifest.require(output, "score"), "segments"):
        for segment in storage.read_records(url, ScoredSegment):
            found.setdefault(segment.doc_id, []).append(segment)
    ordered = {name: sorted(of, key=lambda segment: segment.segment_index) for name, of in found.items()}
    return {name: np.concatenate([segment.surprisal_nats for segment in of]) for name, of in ordered.items()}


def test_every_source_token_has_what_was_scored(output: str) -> None:
    nats, thoughts, pieces = scored(output), 0, 0
    packed = manifest.require(output, "pack")
    for url in manifest.file_urls(output, packed, "shards"):
        assert str(read_schema(url).field("surprisal").type).startswith("fixed_size_list<item: halffloat")
        for row in storage.read_records(url, MaskedRow):
            assert len(row.surprisal) == 128 and np.isnan(row.surprisal[row.token_type != TokenType.SOURCE]).all()
            for item in items_of(row):
                values = item.surprisal[item.token_type == TokenType.SOURCE]
                expected = nats[item.doc_id][item.source_start :][: len(values)]
                np.testing.assert_array_equal(values, expected)
                assert (values > 0).any() and not np.isnan(values).any()
                thoughts, pieces = thoughts + (item.token_type == TokenType.THOUGHT).any(), pieces + item.source_start
    assert thoughts and pieces


def test_readers_give_it_beside_the_labels(output: str) -> None:
    dataset, rows, documents = PackedDataset(output), RowSource(output), DocumentSource(output)
    for number in range(len(dataset)):
        row, item = dataset[number], rows[number]
        is_source = row["token_type"] == TokenType.SOURCE
        assert row["surprisal"].dtype == item["surprisal"].dtype == np.float32
        np.testing.assert_array_equal(np.isnan(row["surprisal"]), ~is_source)
        predicted = item["labels"] != IGNORED_LABEL
        np.testing.assert_array_equal(item["surprisal"][predicted], row["surprisal"][1:][predicted[:-1]])
        assert np.isnan(item["surprisal"][row["cu_seqlens"][1:] - 1]).all()
    assert all(len(found["surprisal"]) == len(found["labels"]) for found in map(documents.__getitem__, range(5)))
    batch = collate([dataset[0], dataset[1]])
    assert batch["surprisal"].shape == batch["labels"].shape


def test_exports_carry_it(output: str, tmp_path: Path) -> None:
    export(output, "arrayrecord", str(tmp_path / "records"), loss_mask="no_delimiters")
    files = sorted(map(str, (tmp_path / "records" / "train").iterdir()))
    records, rows = grain.ArrayRecordDataSource(files), RowSource(output)
    assert len(records) == len(rows)
    for number in range(len(rows)):
        found = parse(records[number])
        assert found.keys() == rows[number].keys()
        np.testing.assert_array_equal(found["surprisal"], rows[number]["surprisal"])
    export(output, "parquet", str(tmp_path / "parquet"))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "parquet" / "train").iterdir())]
    columns = [np.array(values, np.float32) for table in tables for values in table["surprisal"].to_pylist()]
    for values, row in zip(columns, PackedDataset(output), strict=True):
        np.testing.assert_array_equal(values, row["surprisal"][: len(values)])


def test_it_is_verified_and_told(output: str) -> None:
    report = verify(output, deep=True, workers=1)
    assert [str(problem) for problem in report.problems] == []
    card = Path(output, "README.md").read_text(encoding="utf-8")
    assert "| `surprisal` |" in card and "float16" in card
    assert '"train/surprisal"' in Path(output, "croissant.json").read_text(encoding="utf-8")


def test_the_documented_loss_leaves_out_what_is_easy(output: str) -> None:
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if "selective_l" in b]
    scope: dict[str, Any] = {}
    exec(block, scope)
    dataset = PackedDataset(output)
    batch = collate([dataset[number] for number in range(4)])
    logits = torch.zeros((*batch["labels"].shape, dataset.vocab_size), requires_grad=True)
    scope["selective_loss"](logits, batch, kept_share=0.5).backward()
    used = (logits.grad.abs().sum(-1) > 0)[:, :-1]
    labels, nats = batch["labels"][:, 1:], batch["surprisal"][:, 1:]
    assert not used[labels == IGNORED_LABEL].any()
    assert used[(labels != IGNORED_LABEL) & nats.isnan()].all()
    assert nats[used & ~nats.isnan()].min() >= nats[~used & (labels != IGNORED_LABEL)].max()
    assert (~used & (labels != IGNORED_LABEL)).any()


@pytest.mark.parametrize("key", ["scorer", "tokenizer"])
def test_what_isnt_kept_is_said_before_anything_is_scored(
    key: str,
    byte_tokenizer: str,
    tmp_path: Path,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
) -> None:
    tree = rehearsal_config(write_jsonl([{"id": "a", "text": "a"}]))
    tree["pack"]["surprisal"] = True
    if key == "scorer":
        tree["difficulty"] = {"scorer": "none"}
        tree["budget"] |= {"policy": "uniform"}
        message = "pack.surprisal: the scorer none gives no token a surprisal"
    else:
        spec = Path(byte_tokenizer, "tokenizer.json").read_text(encoding="utf-8")
        changed = spec.replace('"add_prefix_space":false', '"add_prefix_space":true')
        changed = changed.replace('"add_prefix_space": false', '"add_prefix_space": true')
        (tmp_path / "tokenizer.json").write_text(changed, encoding="utf-8")
        written = '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}'
        (tmp_path / "tokenizer_config.json").write_text(written, encoding="utf-8")
        tree["tokenizer"] = str(tmp_path)
        tree["pack"]["tokenize"] = "as_trainer"
        message = "pack.surprisal: the tokens that were scored are not those"
    with pytest.raises(RequestError, match=message):
        preflight.check(from_mapping(tree), manifest.STAGES)


def test_another_runs_scores_are_asked_too(
    output: str, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: str, tmp_path: Path
) -> None:
    """Borrowed ones may have been made without a scorer."""
    from tests.conftest import rehearsal_tree

    tree = rehearsal_tree(tmp_path, byte_tokenizer, "unread.jsonl")
    tree["pack"]["surprisal"] = True
    config = from_mapping(tree | {"output": output})
    path = Path(manifest.manifest_url(output, "score"))
    said = path.read_text(encoding="utf-8")
    try:
        path.write_text(said.replace('"scorer": "rehearsal"', '"scorer": "none"'), encoding="utf-8")
        with pytest.raises(RequestError, match="the scorer none"):
            Pack(config)
    finally:
        path.write_text(said, encoding="utf-8")
