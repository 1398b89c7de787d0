"""A store whose listings are late: what a stage, a ledger or a delivery decides by them loses nothing in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from augment.engines.protocol import Generation, GenerationRequest, RequestRejected
from augment.engines.rehearsal import RehearsalEngine
from augment.ledger import compaction, parts
from augment.ledger.compaction import compact
from augment.ledger.forgetting import forget
from augment.ledger.reading import read_ledger
from pipelines.deliveries_begun import RECORD_NAME, pending
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError
from sharding.storage import manifest
from sharding.storage.output import Output
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import FLUSH_ROWS, MadeLog
from tests.chaos.test_failing_store import tree_on_store
from tests.s3_server import BUCKET, FaultyS3, server_fixture, store_fixture  # noqa: F401
from tests.test_ledger import keys, row

pytest.importorskip("moto", reason="moto's server is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

LEDGER = f"s3://{BUCKET}/ledger"


@pytest.mark.slow
def test_a_stage_that_finds_less_than_was_made_says_so(
    job: Job, store: FaultyS3, account: Account, made: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a generation has failed, so that one that isn't there need not be a fault."""
    account.fault, account.injected = "an S3 whose listings are late", 3
    victim, generate = min(job.keys), RehearsalEngine.generate

    async def failing(engine: RehearsalEngine, request: GenerationRequest) -> Generation:
        if request.key == victim:
            raise RequestRejected("refused on purpose")
        return await generate(engine, request)

    monkeypatch.setattr(RehearsalEngine, "generate", failing)
    ledger = {"flush_rows": FLUSH_ROWS, "flush_seconds": 0.2, "max_failed_fraction": 0.2}
    config = from_mapping(tree_on_store(job, f"s3://{BUCKET}/late", ledger=ledger))
    store.hold_listings()
    augmented = mill(config, stages=["score", "augment"])["augment"]
    assert augmented.counts["failed"] == 1 and augmented.counts["generated"] == len(job.keys) - 1
    with pytest.raises(MillError, match=r"are not in s3://.* as the store lists it now.*run again in a minute"):
        mill(config, stages=["select"])
    assert not storage.exists(Output(config.output).manifest("select"))
    # Half of it is listed.
    store.release_listings()
    whole = parts.ledger_parts

    def half(url: str, *asked: Any, **more: Any) -> list[str]:
        return whole(url, *asked, **more)[::2]

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.select.ledger_parts", half)
        with pytest.raises(MillError, match="are not in s3://"):
            mill(config, stages=["select"])
    # What came before is listed; what the rest makes, and what is there for it to be swept, is not.
    store.hold_listings()
    done = mill(config)
    assert done["select"].counts["generations_absent"] == 1 and done["select"].counts["missing"] >= 1
    assert verify(config.output).problems == []
    store.release_listings()
    assert verify(config.output, deep=True).problems == []
    account.again = made.again()
    assert account.again == 0
    assert {entry.name for entry in manifest.require(config.output, "pack").files["shards"]} == set(job.expected)


@pytest.fixture
def compacted(store: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A ledger that was compacted, and is listed as it was before; the rows that were there."""
    monkeypatch.setattr(parts, "LATE_LOOK_S", 0.01)
    rows = [row(n) for n in range(4)]
    for one in rows:
        parts.write_part(LEDGER, [one])
    store.hold_listings()
    assert compact(LEDGER).parts_after == 1
    return rows


def test_what_a_compaction_has_moved_is_found_however_late_it_is_listed(store: FaultyS3, compacted: list[Any]) -> None:
    store.release_listings(after=4)
    assert keys(read_ledger(LEDGER)) == keys(compacted)


def test_a_takedown_finds_what_a_compaction_has_moved(store: FaultyS3, compacted: list[Any]) -> None:
    store.release_listings(after=4)
    done = forget(LEDGER, {compacted[1].request_key}, lambda doc_id: doc_id == "doc1", {})
    assert done.rows == 1
    assert keys(read_ledger(LEDGER)) == keys([compacted[0], *compacted[2:]])


def test_a_listing_that_never_catches_up_is_an_error(
    store: FaultyS3, compacted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "LATE_S", 0.05)
    with pytest.raises(MillError, match="lists 4 parts that are gone"):
        list(read_ledger(LEDGER))


def test_a_compaction_brings_nothing_back_that_was_taken_down_meanwhile(
    store: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(n) for n in range(4)]
    for one in rows:
        parts.write_part(LEDGER, [one])
    rewrite = compaction._rewritten

    def then_taken_down(*arguments: Any) -> Sequence[Any]:
        made = list(rewrite(*arguments))
        assert forget(LEDGER, {rows[1].request_key}, lambda doc_id: doc_id == "doc1", {}).rows == 1
        return made

    monkeypatch.setattr(compaction, "_rewritten", then_taken_down)
    store.hold_listings()
    with pytest.raises(MillError, match="1 parts were taken away while they were compacted"):
        compact(LEDGER)
    store.release_listings()
    assert keys(read_ledger(LEDGER)) == keys([rows[0], *rows[2:]])


def test_a_delivery_that_was_begun_is_known_before_it_is_listed(store: FaultyS3) -> None:
    output = f"s3://{BUCKET}/delivered"
    store.hold_listings()
    assert pending(output) is None
    storage.write_json(storage.join(Output(output).delivery(1), RECORD_NAME), {})
    assert pending(output) == 1
