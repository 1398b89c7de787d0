"""`pack.tokenize`: the ids that the trainer's AutoTokenizer gives, or those that spell the source byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipelines import preflight
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.beam.part_join import JoinedDocument
from sharding.errors import RequestError
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing.as_trainer import as_trainer, promise
from sharding.packing.recovery import document_source, items_of, thoughts_of
from sharding.records.rows import Item, MaskedRow
from sharding.records.types import Candidate, ScoredDocument
from sharding.storage import manifest
from tests.test_tokenizer import CONTROL, SAMPLES, SPECS

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENIZERS = {name: TextTokenizer(data, name=name, eos_token="</s>") for name, data in SPECS.items()}


def theirs(name: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_buffer(SPECS[name]))


THEIRS = {name: theirs(name) for name in SPECS}


def expected(name: str, text: str) -> list[int]:
    ids: list[int] = THEIRS[name](text, add_special_tokens=False)["input_ids"]
    return ids


def names_a_control_token(text: str) -> bool:
    return any(token in text for token in [*CONTROL, "<unk>", "<s>"])


@pytest.mark.parametrize("text", [text for text in SAMPLES if not names_a_control_token(text)])
@pytest.mark.parametrize("name", SPECS)
def test_the_ids_are_those_of_transformers(name: str, text: str) -> None:
    assert TOKENIZERS[name].trainer.encode(text)[0].tolist() == expected(name, text)


@given(st.sampled_from(sorted(SPECS)), st.text(st.sampled_from(" \n\u2581thesa\u8a9e\u0301e\ufb01 -"), max_size=30))
def test_any_text_gets_the_ids_of_transformers(name: str, text: str) -> None:
    assert TOKENIZERS[name].trainer.encode(text)[0].tolist() == expected(name, text)


@pytest.mark.parametrize("text", ["a</s>the", "<|im_end|>", " <think> s"])
@pytest.mark.parametrize("name", SPECS)
def test_no_text_makes_a_control_token(name: str, text: str) -> None:
    """What AutoTokenizer gives with `split_special_tokens=True`, and for tokens that aren't special too."""
    assert TOKENIZERS[name].control_ids.isdisjoint(TOKENIZERS[name].trainer.encode(text)[0].tolist())


@given(st.sampled_from(sorted(SPECS)), st.lists(st.text(st.sampled_from(" \u2581thesa\u8a9e\ufb01\u0301"), min_size=1)))
def test_a_document_is_the_trainers_wherever_it_is_cut(name: str, pieces: list[str]) -> None:
    """Source tokens together are those of the whole text; segments go on where the token of their end does."""
    tokenizer = TOKENIZERS[name]
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    ends = np.searchsorted(tokenizer.byte_ends(ids), np.cumsum([len(piece.encode()) for piece in pieces[:-1]]), "left")
    starts = np.unique([0, *(ends + 1)[ends + 1 < len(ids)]]) if len(ids) else np.zeros(1, np.int64)
    thought = Candidate(
        doc_id="a", segment_index=len(starts) - 1, key="k", sample=0, tier="t", model="m", prompt="p", closed="natural",
        finish_reason="stop", thought_tokens=3, text="", input_ids=tokenizer.encode(" the"), shown_tokens=0, kept=True,
        reasons=[],
    )  # fmt: skip
    empty = np.empty(0)
    scored = ScoredDocument(
        doc_id="a", segment_starts=starts, input_ids=ids, surprisal_nats=empty, entropy_nats=empty, memory_nats=empty,
        segment_difficulty_nats=empty,
    )  # fmt: skip
    found = as_trainer(JoinedDocument(scored, {"kept": [thought]}), tokenizer)
    assert found.scored.input_ids.tolist() == expected(name, text)
    begins = found.scored.segment_starts
    assert len(begins) == len(starts) and (np.diff(begins) >= 0).all() and begins[0] == 0
    assert begins[-1] <= len(found.scored.input_ids)
    assert found.beside["kept"][0].input_ids.tolist() == expected(name, " the")
    assert found.beside["kept"][0].shown_tokens == 0


def test_a_tokenizer_that_adds_nothing_gives_the_same(byte_tokenizer: str) -> None:
    assert load_tokenizer(byte_tokenizer).is_as_trainers
    assert not any(tokenizer.is_as_trainers for tokenizer in TOKENIZERS.values())


# --- through the stages -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefixing(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> str:
    """The byte-level tokenizer with a prefix space and a normalizer, as a folder that AutoTokenizer opens."""
    folder = tmp_path_factory.mktemp("prefixing")
    spec = json.loads(Path(byte_tokenizer, "tokenizer.json").read_text(encoding="utf-8"))
    spec["pre_tokenizer"]["add_prefix_space"] = True
    spec["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


@pytest.mark.slow  # all four stages, and a deep verification
def test_the_shards_hold_what_the_trainer_would_make(
    prefixing: str,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
) -> None:
    """` \u2581The` became `T`, `he`: ids that no model knows that was trained with this tokenizer."""
    texts = {str(n): f"The e\u0301nd of the {n}th topic. " + "It goes on, \u212b and on. " * n for n in range(24)}
    source = write_jsonl([{"id": name, "text": text} for name, text in texts.items()])
    tree = rehearsal_config(source, layout="at_hard_span") | {"tokenizer": prefixing}
    tree["pack"] |= {"tokenize": "as_trainer", "sequence_length": 256}
    config = from_mapping(tree)
    mill(config)
    reference = transformers.AutoTokenizer.from_pretrained(prefixing)
    items: dict[str, list[Item]] = {}
    packed = manifest.require(config.output, "pack")
    for url in manifest.file_urls(config.output, packed, "shards"):
        for row in storage.read_records(url, MaskedRow):
            for item in items_of(row):
                items.setdefault(item.doc_id, []).append(item)
    assert set(items) == set(texts)
    thoughts = 0
    for name, text in texts.items():
        assert document_source(items[name]).tolist() == reference(text, add_special_tokens=False)["input_ids"]
        for thought in (thought for item in items[name] for thought in thoughts_of(item)):
            said = reference.decode(thought.input_ids).removeprefix(" ")
            assert thought.input_ids.tolist() == reference(said, add_special_tokens=False)["input_ids"]
            thoughts += 1
    assert thoughts and packed.counts["source_tokens_as_trainer_fewer"] > 0
    assert [str(problem) for problem in verify(config.output, deep=True, workers=1).problems] == []
    card = Path(config.output, "README.md").read_text(encoding="utf-8")
    assert "`as_trainer`: the source tokens of a document, put together, are those that the tokenizer gives" in card


def test_a_lossless_corpus_says_where_the_trainer_differs(prefixing: str, byte_tokenizer: str) -> None:
    said = promise("lossless", load_tokenizer(prefixing))
    assert said.startswith(
        "`lossless`: the tokens of a document spell its text byte for byte; the tokenizer itself gives"
    )
    assert promise("lossless", load_tokenizer(byte_tokenizer)).endswith("byte for byte")


def test_what_cannot_be_promised_is_refused_before_anything_is_scored(
    byte_tokenizer: str,
    tmp_path: Path,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
) -> None:
    """A folder whose tokenizer_config.json has transformers add what its tokenizer.json doesn't."""
    spec = Path(byte_tokenizer, "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(spec)
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tree = rehearsal_config(write_jsonl([{"id": "a", "text": "a"}])) | {"tokenizer": str(tmp_path)}
    preflight.check(from_mapping(tree), manifest.STAGES)
    tree["pack"]["tokenize"] = "as_trainer"
    with pytest.raises(RequestError, match=r"pack\.tokenize: as_trainer promises the ids of AutoTokenizer, and for '"):
        preflight.check(from_mapping(tree), manifest.STAGES)
