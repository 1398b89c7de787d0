"""Provenance of documents and thoughts, and signed manifests: what they say, and that damage is named."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

from pipelines import provenance, signing
from pipelines.cli import app
from pipelines.run import mill
from pipelines.verify import verify
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.records.families import KEPT, SEGMENTS
from sharding.storage import manifest
from sharding.storage.arrow_files import read_batches, read_records
from sharding.storage.output import Output
from tests.conftest import rehearsal_tree

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def milled(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("provenance")
    with (folder / "source.jsonl").open("wb") as file:
        for number in range(8):
            record = {"id": f"doc{number}", "text": f"Document {number} says {number * 7}. " * (20 + number)}
            about = {"url": f"https://example.org/{number}", "license": "cc0-1.0", "likes": number} if number else {}
            file.write(msgspec.json.encode(record | about) + b"\n")
    tree = rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl"))
    tree["source"]["metadata_fields"] = ["url", "license", "likes"]
    mill(from_mapping({**tree, "select": {"value": "length"}}))
    return folder / "out"


@pytest.fixture
def output(milled: Path, tmp_path: Path) -> Path:
    shutil.copytree(milled, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    return invoke


def parts(output: Path, stage: str, family: Any) -> list[Any]:
    urls = manifest.file_urls(str(output), manifest.require(str(output), stage), family.name)
    return [record for url in urls for record in read_records(url, family.kind)]


def table(output: Path, kind: str) -> list[dict[str, Any]]:
    files = sorted((output / "provenance").glob(f"{kind}-*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()


# --- provenance -------------------------------------------------------------------------------------------------------


def test_documents_say_where_they_came_from(output: Path) -> None:
    provenance.write(output)
    rows = {row["doc_id"]: row for row in table(output, "documents")}
    segments = parts(output, "score", SEGMENTS)
    assert {name: row["segments"] for name, row in rows.items()} == Counter(segment.doc_id for segment in segments)
    assert sum(row["tokens"] for row in rows.values()) == sum(len(segment.input_ids) for segment in segments)
    assert {Path(row["source_path"]).name for row in rows.values()} == {"source.jsonl"}
    assert rows["doc3"]["url"] == "https://example.org/3" and rows["doc3"]["license"] == "cc0-1.0"
    assert msgspec.json.decode(rows["doc3"]["carried"])["likes"] == 3
    assert rows["doc0"]["url"] is None and rows["doc0"]["license"] is None


def test_thoughts_say_what_made_them(output: Path) -> None:
    provenance.write(str(output))
    kept = {(one.doc_id, one.segment_index, one.sample): one for one in parts(output, "select", KEPT)}
    augmented = manifest.require(str(output), "augment")
    rows = table(output, "thoughts")
    assert len(rows) == len(kept) > 3
    for row in rows:
        one = kept[row["doc_id"], row["segment_index"], row["sample"]]
        assert (row["key"], row["tier"], row["value"]) == (one.key, one.tier, one.value)
        assert row["generator"] == augmented.facts["models"][one.model]["name"] and row["engine"] == "rehearsal"
        assert row["prompt_version"] == augmented.facts["prompts"][one.prompt]
        assert (row["valued_by"] is None) == (one.value is None) and row["scorer"] is None
    assert {row["valued_by"] for row in rows} >= {"length"}


def test_a_gain_names_the_scorer(output: Path) -> None:
    augmented, selected = (manifest.require(str(output), stage) for stage in ("augment", "select"))
    selected = msgspec.structs.replace(
        selected,
        facts={**selected.facts, "value": "continuation_gain"},
        config={**selected.config, "scorer": {"scorer": "causal_lm", "model": "acme/reader", "revision": None}},
        inputs={**selected.inputs, "scorer": "abc123"},
    )
    (url,) = manifest.file_urls(str(output), selected, "kept")
    (batch,) = read_batches(url, (*provenance._OF_KEPT, *provenance._GAINS))
    gains = pa.array([0.5] + [None] * (batch.num_rows - 1), pa.float64())
    for column in ("value", "gain_nats"):
        batch = batch.set_column(batch.schema.get_field_index(column), column, gains)
    first, second, *_ = provenance._thoughts(augmented, selected)(batch).to_pylist()
    assert (first["valued_by"], first["scorer"]) == ("continuation_gain", "causal_lm acme/reader abc123")
    assert (second["valued_by"], second["scorer"]) == (None, None)


def test_it_is_the_same_bytes_again(output: Path) -> None:
    first = provenance.write(str(output))
    (output / "provenance" / "mine.txt").write_text("x")
    (output / "provenance" / "documents-00007-of-00009.parquet").write_text("left by a killed run")
    assert msgspec.json.encode(provenance.write(str(output))) == msgspec.json.encode(first)
    assert (output / "provenance" / "mine.txt").exists(), "what is nobody's is nobody's to remove"
    assert not (output / "provenance" / "documents-00007-of-00009.parquet").exists()


def test_a_document_in_several_batches_is_one_row() -> None:
    ids = ["a", "b", "b", "b", "c"]
    batches = [
        pa.record_batch({"doc_id": ids[:2]}),
        pa.record_batch({"doc_id": ids[2:3]}),
        pa.record_batch({"doc_id": ids[3:]}),
    ]
    whole = [batch.column("doc_id").to_pylist() for batch in provenance._whole_documents(iter(batches))]
    assert [name for piece in whole for name in piece] == ids and ["b", "b", "b"] in whole


def damaged(output: Path) -> list[str]:
    return [f"{Path(problem.where).name}: {problem.what}" for problem in verify(str(output)).problems]


def test_verify_checks_it(output: Path) -> None:
    assert damaged(output) == []
    provenance.write(str(output))
    assert damaged(output) == []
    folder = output / "provenance"
    (name,) = (path.name for path in folder.glob("thoughts-*"))
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"x")
    assert damaged(output) == [f"{name}: its bytes are not those of PROVENANCE.json"]
    (folder / name).unlink()
    (folder / "more.parquet").write_text("")
    assert damaged(output) == ["more.parquet: PROVENANCE.json doesn't name it", f"{name}: is missing"]
    (folder / "PROVENANCE.json").write_text("{")
    assert len(damaged(output)) == 1 and "can't be read" in damaged(output)[0]
    (folder / "more.parquet").unlink()
    made = provenance.write(str(output))
    other = msgspec.structs.replace(made, of={**made.of, "select": "0" * 32})
    (folder / "PROVENANCE.json").write_bytes(msgspec.json.encode(other))
    assert ["thoughtmill provenance" in line for line in damaged(output)] == [True]


def test_a_link_is_not_followed(output: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (output / "provenance").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="is a link"):
        provenance.write(str(output))


def test_the_command_says_what_it_wrote(output: Path, run: Run) -> None:
    done = run("provenance", str(output))
    assert done.exit_code == 0 and "8 documents" in done.output


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Files of a key and its public half as OpenSSH and in PEM; and of others."""
    own, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    curve = ec.generate_private_key(ec.SECP256R1())
    pem, ssh = (Encoding.PEM, PrivateFormat.PKCS8), (Encoding.PEM, PrivateFormat.OpenSSH)
    raw = NoEncryption()
    contents = {
        "pem": own.private_bytes(*pem, raw),
        "ssh": own.private_bytes(*ssh, raw),
        "locked": own.private_bytes(*pem, BestAvailableEncryption(b"secret")),
        "curve": curve.private_bytes(*pem, raw),
        "pem.pub": own.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "ssh.pub": own.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" me@here\n",
        "other": other.private_bytes(*pem, raw),
        "other.pub": other.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        "curve.pub": curve.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        "text": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in [*contents, "nothing"]}


@pytest.mark.parametrize("form", ["pem", "ssh"])
def test_what_is_signed_is_verified(output: Path, keys: dict[str, str], form: str, run: Run) -> None:
    signed = run("sign", str(output), "--key", keys[form])
    assert signed.exit_code == 0 and "SHA256:" in signed.output
    assert len((output / "MANIFEST.json.sig").read_bytes()) == 64
    for public in ("pem.pub", "ssh.pub"):
        assert signing.unsigned(str(output), keys[public]) is None
    done = run("verify", str(output), "--public-key", keys["ssh.pub"], "--json")
    told = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and told["ok"] is True and told["signed_by"] in signed.output
    done = run("verify", str(output), "--public-key", keys["ssh.pub"])
    assert f"; signed with the key {told['signed_by']}; " in " ".join(done.output.split())
    assert "signed with" not in run("verify", str(output)).output


def test_unsigned_changed_and_another_key_are_told_apart(output: Path, keys: dict[str, str], run: Run) -> None:
    said = signing.unsigned(str(output), keys["ssh.pub"])
    assert said is not None and "the corpus is not signed" in said
    signing.sign(output, Path(keys["pem"]))
    said = signing.unsigned(output, Path(keys["other.pub"]))
    assert said is not None and "another key" in said and "SHA256:" in said
    with (output / "MANIFEST.json").open("ab") as file:
        file.write(b" ")
    said = signing.unsigned(str(output), keys["ssh.pub"])
    assert said is not None and "changed since" in said
    done = run("verify", str(output), "--public-key", keys["ssh.pub"], "--json")
    report = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert report["signed_by"] is None
    assert done.exit_code == 1 and report["problems"] == [{"where": Output(str(output)).signature, "what": said}]
    signing.sign(str(output), keys["other"])
    # Whatever is claimed beside the manifest, the key that was given decides.
    shutil.copy(keys["ssh.pub"], output / "MANIFEST.json.pub")
    assert signing.unsigned(str(output), keys["ssh.pub"]) is not None


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("locked", "has a passphrase"),
        ("curve", "another kind than ed25519"),
        ("text", "is no private key"),
        ("ssh.pub", "is no private key"),
        ("nothing", "cannot read the key"),
    ],
)
def test_what_is_no_key_is_refused(output: Path, keys: dict[str, str], name: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        signing.sign(str(output), keys[name])
    assert not (output / "MANIFEST.json.sig").exists()


@pytest.mark.parametrize(
    ("name", "match"), [("curve.pub", "another kind"), ("text", "no public key"), ("pem", "no public")]
)
def test_what_is_no_public_key_is_refused(output: Path, keys: dict[str, str], name: str, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        signing.unsigned(str(output), keys[name])


def test_an_unfinished_run_is_not_signed(output: Path, keys: dict[str, str]) -> None:
    (output / "_SUCCESS").unlink()
    with pytest.raises(MillError, match="did not finish"):
        signing.sign(str(output), keys["pem"])
