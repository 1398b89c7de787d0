"""What stands before and after documents: `pack.document_start`, `pack.document_end`, from the config to the shards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import preflight
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.config import PackConfig
from sharding.packing.laying_out import delimiter_warnings, encode_delimiters
from sharding.shards.dataset import PackedDataset
from sharding.storage import manifest


@pytest.mark.parametrize("key", ["document_start", "document_end"])
@pytest.mark.parametrize("text", ["<|nothing|>", "two words", "<|im_end|><|im_end|>"])
def test_what_is_not_one_token_is_refused(byte_tokenizer: str, key: str, text: str) -> None:
    """A token that the vocabulary hasn't was spelled with nine plain ones, which no trainer takes for an end."""
    config = PackConfig(sequence_length=64, **{key: text})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=rf"pack\.{key}: .* is \d+ tokens of .*and trainers look for one"):
        encode_delimiters(config, load_tokenizer(byte_tokenizer))


def test_the_preflight_says_so_before_anything_is_scored(
    byte_tokenizer: str, write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    tree = rehearsal_config(write_jsonl([{"id": "a", "text": "a"}]))
    tree["pack"]["document_end"] = "<|nothing|>"
    with pytest.raises(RequestError, match=r"pack\.document_end"):
        preflight.check(from_mapping(tree), manifest.STAGES)


@pytest.mark.parametrize(("end", "odd"), [("<|im_end|>", True), ("<|endoftext|>", False), (None, False), ("", False)])
def test_an_end_of_turn_is_warned_of(byte_tokenizer: str, end: str | None, odd: bool) -> None:
    config = PackConfig(sequence_length=64, document_end=end)
    warnings = delimiter_warnings(config, load_tokenizer(byte_tokenizer))
    assert bool(warnings) == odd
    assert all("documents end with <|im_end|>, the end of a turn" in warning for warning in warnings)


def test_documents_begin_with_the_token_in_the_shards(
    byte_tokenizer: str,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Through all four stages: counted, verified to the token, told by the card; and warned of."""
    texts = [f"Document {number}. " + "It goes on and on. " * number for number in range(30)]
    source = write_jsonl([{"id": str(number), "text": text} for number, text in enumerate(texts)])
    tree = rehearsal_config(source)
    tree["pack"] |= {"document_start": "<|im_start|>", "document_end": "<|im_end|>", "sequence_length": 128}
    config = from_mapping(tree)
    with caplog.at_level(logging.WARNING):
        mill(config)
    assert any("the end of a turn in a chat" in record.message for record in caplog.records)
    report = verify(config.output, deep=True, workers=1)
    assert [str(problem) for problem in report.problems] == []
    tokenizer = load_tokenizer(byte_tokenizer)
    start, end = (tokenizer.token_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    begun = ended = 0
    for row in PackedDataset(config.output):
        begun += int((row["input_ids"] == start).sum())
        ended += int((row["input_ids"] == end).sum())
        # What begins a document has no label; the token behind it is predicted from it.
        at = (row["input_ids"] == start).nonzero()[0]
        assert (row["labels"][at] == -100).all() and (row["position_ids"][at] == 0).all()
        assert (row["labels"][at + 1] == row["input_ids"][at + 1]).all()
    assert begun == ended == 30
    card = Path(config.output, "README.md").read_text(encoding="utf-8")
    assert f"as ids [{start}]" in card and "before a document" in card
    assert "the end of a turn in a chat" in card
