"""Passwords and keys stay out of what is published or shown, whatever characters they hold and wherever they stand."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines import cli, report
from pipelines.cli.logs import _Escaped
from pipelines.run import mill
from pipelines.secrets import published, without_secrets
from pipelines.yaml_config import from_mapping, load, to_mapping
from sharding.storage import manifest

ROOT = Path(__file__).parent.parent.parent
MARKS = ["/", "'", '"', "<", "`", "|", ">", " ", "?", "#", "&", ";", "@", ":", "%", "\\", "=", "::", "[", "é", "\n"]
PLACES = [
    "s3://AKIA:{}@bucket/x",
    "https://me:{}@host:8080/v1",
    "https://h/x?pw={}",
    "https://h/x?a=1&pass={}",
    "https://h/x?X-Amz-Signature={}&y=2",
    "https://h/x?user_Password={}",
    "https://h/x#access_token={}",
    "https://h/x#{}",
    "zip://a.csv::https://me:{}@host/a.zip",
    "simplecache::s3://AKIA:{}@bucket/x",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mark", MARKS)
def test_a_password_may_hold_any_character(place: str, mark: str) -> None:
    if mark in "&;#" and "?" in place and "&y" in place:
        pytest.skip("nobody can tell where it ends")
    told = without_secrets(place.format(f"hunter{mark}zwei"))
    assert "hunter" not in told and "zwei" not in told, told
    assert "REDACTED" in told


@given(st.text(min_size=1))
def test_no_password_before_a_host_gets_through(password: str) -> None:
    secret = f"<{password}>"
    assert secret not in without_secrets(f"s3://AKIA:{secret}@bucket/x")
    assert secret not in without_secrets({"source": {"path": f"s3://AKIA:{secret}@bucket/x"}})["source"]["path"]


@pytest.mark.parametrize(
    ("told", "clean"),
    [
        ("see `https://u@h/x`, and a@b.c", "see `https://REDACTED@h/x`, and a@b.c"),
        ("read https://me:pw@h/x?pw=1 twice", "read https://REDACTED@h/x?pw=REDACTED twice"),
        ("started with --hub-token=abc --seed=3 pw=x", "started with --hub-token=REDACTED --seed=3 pw=REDACTED"),
        ("https://h/x?to=https%3A%2F%2Fme%3Apw%40other%2F&b=1", "https://h/x?to=https://REDACTED@other/&b=1"),
        ("ghp@github.com", "ghp@github.com"),
    ],
)
def test_in_running_text(told: str, clean: str) -> None:
    assert without_secrets(told) == clean


@pytest.mark.parametrize(
    "key", ["api_key", "apiKey", "hf-token", "password", "pw", "pass", "Authorization", "aws_secret_access_key", "auth"]
)
def test_what_stands_under_the_name_of_a_secret_is_one(key: str) -> None:
    tree = {"engine_args": {key: "hunter2", "deeper": {key: ["hunter2", {"x": "hunter2"}]}, "max_num_seqs": 3}}
    told = without_secrets(tree)
    assert "hunter2" not in json.dumps(told) and told["engine_args"]["max_num_seqs"] == 3


@pytest.mark.parametrize(
    "plain",
    [
        "s3://bucket/raw/*.jsonl.zst",
        "s3://bucket/part-?.jsonl",
        "s3://bucket/C#/x",
        "https://huggingface.co/datasets/a/b",
        "http://localhost:8000/v1",
        "https://h/x?a=1&page=2",
        "file:///home/me@work/a.jsonl",
        "/data/a@b:c/d?pw=1.jsonl",
        "out[1]",
        {"api_key_env": "MY_KEY", "tokenizer": "gpt2", "max_tokens": 3, "sigma": "sigma=0.5"},
    ],
)
def test_what_is_no_secret_stays(plain: Any) -> None:
    assert without_secrets(plain) == plain


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_lose_nothing(path: Path) -> None:
    tree = to_mapping(load(str(path)))
    assert without_secrets(tree) == json.loads(json.dumps(tree))


def test_no_page_and_no_file_of_a_run_tells_a_secret(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]]
) -> None:
    secret = "hun/ter'2\"<`zwei"
    tree = rehearsal_config(write_jsonl([{"id": "a", "text": "some text " * 100}]))
    model = {
        "engine": "rehearsal",
        "name": f"https://me:{secret}@example.org/m?pw={secret}",
        "revision": f"x://a:{secret}@b",
    }
    card = {"name": f"of https://h/?pass={secret}", "source_datasets": [f"s3://a:{secret}@b/c"], "language": ["en"]}
    config = from_mapping(tree | {"models": {"pretend": model}, "card": card})
    made = mill(config)
    report.write(config.output)
    assert made["augment"].facts["models"]["pretend"]["name"] == model["name"], "or the test shows nothing"
    for name in ("README.md", "config.yaml", "croissant.json", "report.html"):
        told = (Path(config.output) / name).read_text()
        for piece in ("hun/ter", "zwei", "ter'2", "ter&#39;2"):
            assert piece not in told, (name, piece)
    assert yaml.safe_load((Path(config.output) / "config.yaml").read_text())["output"] == config.output
    packed = manifest.require(config.output, "pack")
    assert published(packed).files == packed.files


@pytest.mark.parametrize("command", ["status", "verify", "report", "inspect"])
@pytest.mark.parametrize("url", ["nosuch://me:hunter2@h/x", "simplecache::http://h/x?token=hunter2"])
def test_an_error_repeats_no_password(
    command: str, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Logs of jobs are handed around."""
    monkeypatch.setattr(sys, "argv", ["thoughtmill", command, url])
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)  # the logging of this process is the test runner's
    with pytest.raises(SystemExit):
        cli.main()
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("error ") and "REDACTED" in said and "hunter2" not in said


def test_a_line_of_the_log_repeats_no_password() -> None:
    record = logging.makeLogRecord({"msg": "https://h/x?sig=hunter2 answered %d", "args": (503,)})
    assert _Escaped(logging.BASIC_FORMAT).format(record).endswith("https://h/x?sig=REDACTED answered 503")
