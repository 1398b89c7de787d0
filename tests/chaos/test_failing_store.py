"""An S3 that answers one call in twenty with 503: source, output and ledger are there, and nothing is lost."""

import random
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import MillConfig
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError
from tests.chaos.conftest import Account, Job
from tests.chaos.jobs import UNWRITTEN, Child, MadeLog, ledger_keys
from tests.chaos.test_kills import finish, slow_engine, until
from tests.s3_server import BUCKET, FaultyS3, lead_to, server_fixture, store_fixture  # noqa: F401

pytest.importorskip("moto", reason="moto's server is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

SHARE = 0.05


def tree_on_store(job: Job, root: str, **sections: Any) -> dict[str, Any]:
    """The job with everything that it reads and writes below `root`."""
    source = storage.join(root, "source.jsonl")
    if not storage.exists(source):
        storage.write_bytes(source, Path(job.source).read_bytes())
    tree = job.tree(Path("unused"), **sections)
    tree["source"] = {**tree["source"], "path": source}
    return {**tree, "output": storage.join(root, "out")}


def run_on_failing_store(job: Job, store: FaultyS3, config: MillConfig, account: Account) -> int:
    """Start the run until it comes to its end while calls fail; how many starts that took."""
    before, starts = store.refused, 0
    while True:
        starts += 1
        store.fail_fraction = SHARE
        try:
            mill(config)
            break
        except MillError as error:
            assert f"s3://{BUCKET}/" in str(error), "the message names the file"
            assert starts < 20
        finally:
            store.fail_fraction = 0.0
    account.injected += store.refused - before
    finish(job, config, account)
    return starts


@pytest.mark.slow
def test_one_call_in_twenty_fails(job: Job, store: FaultyS3, account: Account, made: MadeLog) -> None:
    account.fault = "S3: 503 for 5% of all calls"
    config = from_mapping(tree_on_store(job, f"s3://{BUCKET}/failing"))
    assert run_on_failing_store(job, store, config, account) == 1, "the run itself outlives this"
    account.again = made.again()
    assert account.injected >= 5 and account.again == 0


@pytest.mark.slow
def test_our_own_patience_suffices(
    job: Job, store: FaultyS3, account: Account, made: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # botocore no longer tries again; only the source's reads, which are streams, are without a second try then.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    lead_to(store, monkeypatch)
    account.fault = "S3: 503 for 5% of all calls, without botocore's retries"
    config = from_mapping(tree_on_store(job, f"s3://{BUCKET}/impatient"))
    starts = run_on_failing_store(job, store, config, account)
    account.again = made.again()
    assert account.injected >= 3 and account.again == 0
    assert starts <= 4, "calls are not tried again"


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_many_failing_calls(job: Job, store: FaultyS3, account: Account, made: MadeLog) -> None:
    account.fault = "S3: 503 for 5% of all calls"
    for number in range(10):
        made.path.unlink(missing_ok=True)
        run_on_failing_store(job, store, from_mapping(tree_on_store(job, f"s3://{BUCKET}/{number}")), account)
        account.again += made.again()
    assert account.again == 0


def kill_on_failing_store(
    job: Job, store: FaultyS3, kills: int, sections: dict[str, Any], account: Account, made: MadeLog
) -> None:
    """SIGKILL while generations go to a store that fails: the worst of both."""
    rng = random.Random(kills)
    tree = tree_on_store(job, f"s3://{BUCKET}/killed", **sections)
    config = from_mapping(tree)
    mill(config, stages=["score"])
    durable: list[tuple[int, set[str]]] = []
    before = store.refused
    for _ in range(kills):
        store.fail_fraction = SHARE
        seen = len(made.calls())
        child = Child(tree, made, ("augment",))
        until(lambda seen=seen: len(made.calls()) > seen, child)  # type: ignore[misc]
        child.process.join(rng.uniform(0, 1.0))
        account.injected += child.kill()
        store.fail_fraction = 0.0
        keys = set(ledger_keys(config))
        durable.append((len(made.calls()), keys))
        assert len(made.keys() - keys) <= UNWRITTEN
    assert account.injected and store.refused > before
    account.fault = "SIGKILL in augment on an S3 that refuses 5% of all calls"
    finish(job, config, account)
    calls = made.calls()
    account.lost += sum(call.partition(" ")[0] in keys for count, keys in durable for call in calls[count:])
    account.again = made.again()
    assert account.lost == 0


@pytest.mark.slow
def test_kills_on_a_failing_store(job: Job, store: FaultyS3, account: Account, made: MadeLog) -> None:
    kill_on_failing_store(job, store, 2, slow_engine(40), account, made)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
def test_many_kills_on_a_failing_store(large_job: Job, store: FaultyS3, account: Account, made: MadeLog) -> None:
    kill_on_failing_store(large_job, store, 12, slow_engine(200), account, made)
