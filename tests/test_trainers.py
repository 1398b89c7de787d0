"""The lines of docs/formats.md run with the libraries they name, in places of their own.

TRL and others pin what this project can't share, or are no part of it: each is installed into a folder of this test
session, without its dependencies, and runs in a process that has that folder in front of its path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sharding.records.rows import Row, TokenType
from sharding.shards.export import export
from tests.packed_output import write_output

PAGE = Path(__file__).parent.parent / "docs" / "formats.md"

LOCK = PAGE.parent.parent / "requirements" / "lock.txt"

VOCAB_SIZE = 2_000


def documented(word: str) -> str:
    """The block of Python of the page that has a word in it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return str(block)


def items(row: Row) -> list[list[int]]:
    """The ids of every item of a row."""
    ends = np.cumsum(row.seq_lengths).tolist()
    return [row.input_ids[start:stop].tolist() for start, stop in zip([0, *ends], ends, strict=False)]


@pytest.fixture(scope="module")
def run_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a script with packages in front of the path; gives what it prints.

    Skips where they can't be had, as without a network; in CI that is a failure.
    """
    unavailable = pytest.fail if os.environ.get("CI") else pytest.skip

    def run(script: str, *packages: str) -> str:
        folder = tmp_path_factory.mktemp("packages")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            unavailable(f"{', '.join(packages)} can't be had in two minutes")
        if done.returncode:
            unavailable(f"{', '.join(packages)} can't be had: {done.stderr.strip().splitlines()[-1]}")
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=240, check=False
        )
        assert found.returncode == 0, found.stderr[-3_000:]
        return found.stdout

    return run


@pytest.mark.slow  # imports transformers and trains two steps
@pytest.mark.timeout(400)
def test_trl_trains_on_the_parquet(run_with: Callable[..., str], byte_tokenizer: str, tmp_path: Path) -> None:
    """TRL 1.x refuses padding-free rows whose length it was told to bound."""
    output = write_output(str(tmp_path / "output"), vocab_size=VOCAB_SIZE)
    export(output.url, "parquet", str(tmp_path / "target"), loss_mask="all")
    lines = documented("SFTConfig(").replace("path/to/target", str(tmp_path / "target"))
    lines = lines.replace("packing=False,", "packing=False, use_cpu=True,")  # as this machine may have no GPU
    assert "max_length=None" in lines
    script = f"""
import os
os.chdir({str(tmp_path)!r})
{lines}
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer
args.max_steps, args.per_device_train_batch_size, args.report_to = 2, 2, []
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
model = LlamaForCausalLM(LlamaConfig(vocab_size={VOCAB_SIZE}, max_position_embeddings=64, **sizes))
ends = dict(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
tokenizer = PreTrainedTokenizerFast(tokenizer_file={byte_tokenizer + "/tokenizer.json"!r}, **ends)
trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
batch = next(iter(trainer.get_train_dataloader()))
print("documents", int((batch["position_ids"] == 0).sum()), "labels", int((batch["labels"] != -100).sum()))
print("loss", trainer.train().training_loss)
"""
    printed = run_with(script, "trl>=1.16,<2")
    documents, labels = map(int, re.findall(r"documents (\d+) labels (\d+)", printed)[0])
    assert documents > 2 and labels > documents
    assert 0 < float(re.findall(r"^loss ([\d.]+)$", printed, re.MULTILINE)[0]) < 20


@pytest.mark.slow  # installs seven packages and imports torchvision
@pytest.mark.timeout(400)
def test_streaming_reads_the_shards(run_with: Callable[..., str], tmp_path: Path) -> None:
    """With the documented collate, and not with torch's own."""
    output = write_output(str(tmp_path / "output"), vocab_size=VOCAB_SIZE)
    export(output.url, "mds", str(tmp_path / "target"), loss_mask="source_only")
    lines = documented("StreamingDataset(").replace("s3://bucket/target", str(tmp_path / "target"))
    script = f"""
import json
{lines.replace("/tmp/cache", str(tmp_path / "cache"))}
try:
    next(iter(DataLoader(rows, batch_size=8)))
except RuntimeError as error:
    print("torch's own:", error)
ids = sorted(row.numpy().tobytes().hex() for batch in loader for row in batch["tokens"])
print("rows", len(ids), ids[0], ids[-1])
print(json.dumps([{{name: value.tolist() for name, value in rows[number].items()}} for number in range(len(rows))]))
"""
    torchvision = next(
        line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torchvision==")
    )
    packages = ("catalogue", "zstd", "Brotli", "python-snappy", "cramjam", torchvision.split(";")[0].strip())
    printed = run_with(script, "mosaicml-streaming>=0.13,<0.14", *packages)
    expected = sorted(row.input_ids.astype("<i4").tobytes().hex() for row in output.rows("train"))
    assert "torch's own: stack expects each tensor to be equal size" in printed
    assert re.findall(r"^rows (.*)$", printed, re.MULTILINE)[0].split() == [
        str(len(expected)),
        expected[0],
        expected[-1],
    ]
    samples = json.loads(printed.splitlines()[-1])
    assert len(samples) == len(output.rows("train"))
    for sample, row in zip(samples, output.rows("train"), strict=True):
        for name, values in (
            ("tokens", row.input_ids),
            ("token_type", row.token_type),
            ("seq_lengths", row.seq_lengths),
        ):
            assert sample[name] == values.tolist()
        assert sample["loss_mask"] == (row.token_type == TokenType.SOURCE).tolist()


@pytest.mark.slow  # installs twenty packages
@pytest.mark.timeout(400)
def test_olmo_core_reads_the_shards(run_with: Callable[..., str], tmp_path: Path) -> None:
    """A row is an instance, with its mask and its documents."""
    output = write_output(str(tmp_path / "output"), vocab_size=VOCAB_SIZE)
    export(output.url, "olmo", str(tmp_path / "target"), loss_mask="thoughts_only")
    lines = documented("NumpyFSLDatasetConfig(").replace("target/train", str(tmp_path / "target/train"))
    lines = lines.replace("sequence_length=8192", "sequence_length=64").replace("49152", str(VOCAB_SIZE))
    lines = lines.replace("eos_token_id=0", f"eos_token_id={VOCAB_SIZE - 1}")
    script = f"""
{lines}
for number in range(len(rows)):
    row = rows[number]
    print("row", *map(int, row["label_mask"].tolist()), *row["input_ids"].tolist())
    print("documents", *row["doc_lens"].tolist())
"""
    google = ("google-api-core", "google-cloud-storage", "google-cloud-core", "google-resumable-media", "google-auth")
    more = (
        "googleapis-common-protos",
        "proto-plus",
        "google-crc32c",
        "pyasn1",
        "pyasn1-modules",
        "dataclass-extensions",
    )
    omega = ("omegaconf", "antlr4-python3-runtime==4.9.3", "bettermap", "cached_path")
    printed = run_with(script, "ai2-olmo-core>=3,<4", *google, *more, *omega)
    found = [list(map(int, line.split()[1:])) for line in printed.splitlines() if line.startswith("row ")]
    assert found == [
        [*(row.token_type == TokenType.THOUGHT).tolist(), *row.input_ids.tolist()] for row in output.rows("train")
    ]
    documents = [list(map(int, line.split()[1:])) for line in printed.splitlines() if line.startswith("documents ")]
    for row, lengths in zip(output.rows("train"), documents, strict=True):
        ends = np.flatnonzero(row.input_ids == VOCAB_SIZE - 1) + 1
        assert lengths == np.diff(np.unique([0, *ends, len(row.input_ids)])).tolist()
        whole = {end for end in np.cumsum(row.seq_lengths) if row.input_ids[end - 1] == VOCAB_SIZE - 1}
        assert whole <= set(np.cumsum(lengths)), "items end where documents do, but for pieces of one that was cut"
    assert sum(len(lengths) > 1 for lengths in documents) > 5


def test_nanotron_reads_the_shards(tmp_path: Path) -> None:
    """As its loader has datatrove read a folder: sequences of one token more, positions from the index."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    output = write_output(str(tmp_path / "output"), vocab_size=VOCAB_SIZE)
    export(output.url, "datatrove", str(tmp_path / "target"))
    folder = str(tmp_path / "target" / "train")
    rows = DatatroveFolderDataset(folder, 32, "*.ds", recursive=False, token_size=2, return_positions=True)
    found = [rows[number] for number in range(len(rows))]
    expected = []
    for shard in output.shards["train"]:
        ids = [token for row in shard for of_item in items(row) for token in of_item]
        expected += [ids[start : start + 33] for start in range(0, len(ids) - 32, 33)]
    assert [row["input_ids"].tolist() for row in found] == expected
    begun = sum(int((row["positions"] == 0).sum()) for row in found)
    assert begun > len(found), "documents begin within sequences"
