"""Before anything is scored or bought, a run says what would keep its later stages from working: all of it, at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from augment.requests import dialects
from pipelines import preflight
from pipelines.beam_options import beam_options, works_here
from pipelines.plan import make_plan
from pipelines.preflight import machine
from pipelines.run import mill
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.storage import manifest
from tests.endpoint_server import SERVED, ScriptedServer, completion, free_port


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    made = ScriptedServer(lambda number, body: completion(body, text="All of this is well and good, as one can see."))
    yield made
    made.stop()


@pytest.fixture
def config(
    write_jsonl: Callable[..., str], rehearsal_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    source = write_jsonl([{"id": str(i), "text": f"Text number {i} says so. " * 40} for i in range(4)])

    def make(model: dict[str, Any] | None = None, **sections: Any) -> Any:
        models = {"models": {"pretend": model}} if model is not None else {}
        return from_mapping(rehearsal_config(source, **models, **sections))

    return make


def endpoint(tokenizer: str, url: str, **fields: Any) -> dict[str, Any]:
    return {"engine": "endpoint", "name": tokenizer, "urls": [url], "served_name": SERVED, **fields}


def test_a_generator_s_package_that_is_not_there_is_told_before_the_scoring(
    config: Callable[..., Any], byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, package, words in (
        (
            {"engine": "vllm", "name": byte_tokenizer},
            "vllm",
            r"engine vllm needs vLLM.* 'thoughtmill\[vllm\]'",
        ),
        (endpoint(byte_tokenizer, "http://a"), "httpx", r"engine endpoint needs httpx.*'thoughtmill\[endpoint\]'"),
        ({"engine": "vllm", "name": byte_tokenizer}, "transformers", "needs transformers for its chat template"),
    ):
        run = config(model)
        dialects._load.cache_clear()  # another test may have had the package
        with monkeypatch.context() as absent:
            absent.setitem(sys.modules, package, None)
            with pytest.raises(MillError, match=f"^models.pretend: .*{words}"):
                mill(run)
        assert manifest.read(run.output, "score") is None, "nothing was scored"


def test_a_folder_of_the_name_is_no_package(
    config: Callable[..., Any], byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as a checkout of vLLM in the folder where the command runs."""
    (tmp_path / "vllm_absent").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(machine, "PACKAGES", {"vllm": (("vllm_absent",), "vllm")})
    with pytest.raises(MillError, match="needs vllm_absent, not installed here"):
        mill(config({"engine": "vllm", "name": byte_tokenizer}))


@pytest.mark.parametrize(("scorer", "package"), [("causal_lm", "torch"), ("endpoint", "httpx")])
def test_a_scorer_s_package_too_by_run_and_plan(
    config: Callable[..., Any], byte_tokenizer: str, monkeypatch: pytest.MonkeyPatch, scorer: str, package: str
) -> None:
    urls = {"urls": ["http://localhost:1"]} if scorer == "endpoint" else {}
    run = config(difficulty={"scorer": scorer, "model": byte_tokenizer, **urls})
    monkeypatch.setitem(sys.modules, package, None)
    for act in (mill, make_plan):
        with pytest.raises(MillError, match=f"^difficulty: scorer {scorer} needs .*{package}.*pip install"):
            act(run)


PROBLEMS: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "the key": ({}, {"api_key_env": "NO_SUCH_KEY"}, "api_key_env: .*NO_SUCH_KEY is not set"),
    "a socks proxy": ({"ALL_PROXY": "socks5://h:1"}, {}, "socks5://h:1 of ALL_PROXY needs the package socksio"),
    "certificates": ({"SSL_CERT_FILE": "/no/such.pem"}, {"urls": ["https://gpu7"]}, "SSL_CERT_FILE: there is no file"),
    "the model": ({}, {"served_name": "other"}, "does not serve 'other' but 'small'; set served_name"),
    "the room": ({}, {"max_model_len": 5000}, "max_model_len 5000 .* takes at most 4096"),
    "an argument": ({}, {"engine_args": {"seed": 1}}, r"engine_args\.seed .*other sections; it can only be null"),
    "the tokenizer": ({}, {"name": "./no-such-folder"}, "there is no such folder"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_wrong_with_servers_is_told_before_the_scoring(
    config: Callable[..., Any], byte_tokenizer: str, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment, fields, words = PROBLEMS[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    run = config({**endpoint(byte_tokenizer, server.url), **fields})
    with pytest.raises(MillError, match=f"^models.pretend: .*{words}"):
        mill(run)
    assert manifest.read(run.output, "score") is None and not server.bodies


def test_all_of_it_at_once(config: Callable[..., Any], byte_tokenizer: str, server: ScriptedServer) -> None:
    server.models = (200, {}, b"<html><title>Sign in</title></html>")
    run = config(
        models={
            "pretend": endpoint(byte_tokenizer, server.url),
            "other": endpoint(byte_tokenizer, server.url, api_key_env="NO_SUCH_KEY"),
            "unused": endpoint(byte_tokenizer, server.url, api_key_env="NOR_THIS"),
        },
        difficulty={"scorer": "endpoint", "model": byte_tokenizer, "urls": [server.url]},
        budget={
            "thinking_tokens": 1000,
            "tiers": [
                {"name": "brief", "model": "pretend", "prompt": "brief", "max_tokens": 48},
                {"name": "deep", "model": "other", "prompt": "brief", "max_tokens": 64},
            ],
        },
    )
    with pytest.raises(RequestError) as caught:
        mill(run)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 things would keep the run from ending well:"
    assert [line.strip().partition(": ")[0] for line in lines] == ["difficulty", "models.other", "models.pretend"]
    assert str(caught.value).count("'Sign in'") == 2 and "NOR_THIS" not in str(caught.value)


def test_a_server_that_is_not_there_yet_is_no_problem(
    config: Callable[..., Any], byte_tokenizer: str, server: ScriptedServer
) -> None:
    began = time.monotonic()
    for url, models in (
        (f"http://127.0.0.1:{free_port()}", None),
        (server.url, (503, {}, {"message": "Loading model"})),
        (server.url, (500, {}, {})),
    ):
        server.models = models
        preflight.check(config(endpoint(byte_tokenizer, url)), ["score", "augment"])
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_what_is_done_needs_nothing(config: Callable[..., Any], byte_tokenizer: str, server: ScriptedServer) -> None:
    """The servers of a finished run may be gone, its keys forgotten and its packages removed."""
    run = config(endpoint(byte_tokenizer, server.url))
    mill(run)
    server.models = (401, {}, {"message": "who are you?"})
    mill(run)
    packed = config(endpoint(byte_tokenizer, server.url), pack={"sequence_length": 256, "num_shards": 2})
    mill(packed, replace=True)
    again = config(endpoint(byte_tokenizer, server.url), sampling={"temperature": 0.5})
    with pytest.raises(RequestError, match="who are you"):
        mill(again, replace=True)
    assert manifest.read(run.output, "augment") is not None, "nothing was withdrawn"


@pytest.mark.parametrize(
    ("arguments", "here"),
    [
        ([], True),
        (["--direct_num_workers=2", "--direct_running_mode=multi_processing"], True),
        (["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"], True),
        (["--runner=PortableRunner", "--job_endpoint=h:1", "--environment_type=EXTERNAL"], False),
        (["--runner=SparkRunner", "--environment_type=DOCKER"], False),
        (["--runner=DataflowRunner", "--project=p", "--region=r"], False),
    ],
)
def test_where_the_steps_run(arguments: list[str], here: bool) -> None:
    """What workers elsewhere have can't be told from here."""
    assert works_here(beam_options(arguments)) == here
