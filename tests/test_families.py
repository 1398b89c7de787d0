"""The families of part files have the columns they have always had, derived from their records' annotations."""

from typing import Annotated

import numpy as np
import pyarrow as pa
import pytest

from sharding.records.arrow import Column, schema_of
from sharding.records.base import Record
from sharding.records.families import FAMILIES, LEDGER_SCHEMA

CANDIDATE = """
doc_id string, segment_index int32, key string, sample int32, tier string, model string, prompt string, closed string,
finish_reason string, thought_tokens int32, text string, input_ids [uint16], shown_tokens int32,
prompt_tokens int32, value double?, unvalued string, gain_nats double?, control_nats double?,
hard_gain_nats double?, heldout_nats double?, chance_value double?, chance_heldout_nats double?,
contaminated [string], kept bool, reasons [string]
"""

ROW = """
input_ids [uint16 x 8], token_type [uint8 x 8], seq_lengths [int32], doc_ids [string], source_starts [int64],
loss_mask [bool x 8]
"""

COLUMNS = {
    "segments": """
        doc_id string, segment_index int32, num_segments int32, token_start int64, input_ids [uint16],
        surprisal_nats [halffloat], entropy_nats [halffloat], memory_nats [halffloat], difficulty_nats double,
        metadata string?, source string
        """,
    "quarantine": "stage string, origin string, reason string, detail string, doc_id string?, excerpt string",
    "near_copies": "doc_id string, cluster string",
    "requests": """
        doc_id string, segment_index int32, tier string, model string, prompt string, request_key string, samples int32,
        max_tokens int32, expected_tokens double, prompt_tokens int32, shown_tokens int32
        """,
    "kept": CANDIDATE,
    "rejected": CANDIDATE,
    "contaminated": "doc_id string, benchmarks [string], source_tokens int64",
    "shards": ROW,
    "epoch_shards": ROW,
    "documents": """
        doc_id string, source_start int64, shard string, row int32, token_start int32, num_tokens int32
        """,
}

LEDGER = """
key string, request_key string, sample int32, segment_id string, tier string, model string, revision string,
engine string, engine_version string, prompt string, prompt_version string, text string, thought_tokens int32,
token_ids [uint32], sum_logprobs double?, finish_reason string, closed string, prompt_tokens int32, wall_s double,
finished_at double, step string, made_from [string], wants string, continued int32
"""


def spelled(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} {_type(column)}" for column in schema)


def _type(column: pa.Field) -> str:
    if not hasattr(column.type, "value_field"):
        return f"{column.type}{'?' * column.nullable}"
    element = column.type.value_field
    assert (element.name, element.nullable, column.nullable) == ("item", False, False)
    length = f" x {column.type.list_size}" if pa.types.is_fixed_size_list(column.type) else ""
    return f"[{element.type}{length}]"


def test_every_family_has_its_columns() -> None:
    found = {
        name: spelled(family.schema(vocab_size=100, sequence_length=8, with_loss_mask=True))
        for name, family in FAMILIES.items()
    }
    assert found == {name: " ".join(columns.split()) for name, columns in COLUMNS.items()}
    assert spelled(LEDGER_SCHEMA) == " ".join(LEDGER.split())


def test_ids_are_as_wide_as_the_vocabulary_and_a_mask_is_there_when_asked_for() -> None:
    wide = FAMILIES["shards"].schema(vocab_size=100_000, sequence_length=8)
    assert wide.field("input_ids").type == pa.list_(pa.field("item", pa.uint32(), nullable=False), 8)
    assert "loss_mask" not in wide.names
    for name in ("segments", "kept"):
        assert FAMILIES[name].schema(vocab_size=100_000).field("input_ids").type.value_type == pa.uint32()


def test_a_number_that_the_columns_need_is_asked_for_by_name() -> None:
    with pytest.raises(ValueError, match=r"ScoredSegment\.input_ids: .*vocab_size"):
        FAMILIES["segments"].schema()
    with pytest.raises(ValueError, match=r"MaskedRow\.input_ids: .*sequence_length"):
        FAMILIES["shards"].schema(vocab_size=10)


class Unsaid(Record, frozen=True, kw_only=True, eq=False):
    weights: np.ndarray


class Said(Record, frozen=True, kw_only=True, eq=False):
    weights: Annotated[np.ndarray, Column(np.float32)]
    scratch: Annotated[np.ndarray, Column(stored=False)]


def test_an_array_must_say_how_it_rests() -> None:
    with pytest.raises(ValueError, match=r"Unsaid\.weights: .* how it is stored"):
        schema_of(Unsaid)
    assert spelled(schema_of(Said)) == "weights [float]"


def test_parts_are_sorted_by_what_they_are_partitioned_by() -> None:
    """A merge by document needs no more than that."""
    assert all(family.sort_by[:1] == (family.partition_by,) for family in FAMILIES.values() if family.partition_by)
