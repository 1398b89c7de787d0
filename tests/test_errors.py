"""The mistakes people make: each gives one message that says what, where and what to do; no traceback."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cli

MAX_LINES = 12

RUN = ["run", "{config}"]


def setting(*overrides: str, command: str = "run") -> list[str]:
    return [command, "{config}", *(word for override in overrides for word in ("--set", override))]


# The command, its exit code, and words that say what is wrong, where, and what to do.
MISTAKES: dict[str, tuple[list[str], int, list[str]]] = {
    # --- the config file
    "no such config": (["run", "{tmp}/absent.yaml"], 2, ["absent.yaml", "No such file"]),
    "a folder as config": (["run", "{tmp}"], 2, ["cannot read the config", "directory"]),
    "no YAML": (["run", "{tmp}/broken.yaml"], 2, ["broken.yaml", "not valid YAML", "line"]),
    "a list as config": (["run", "{tmp}/list.yaml"], 2, ["list.yaml", "not a mapping of keys"]),
    "not UTF-8": (["run", "{tmp}/latin.yaml"], 2, ["latin.yaml", "not UTF-8"]),
    "a missing field": (["run", "{tmp}/short.yaml"], 2, ["tokenizer: is required", "pack: is required"]),
    "an unknown key": (setting("buget.dollars=1"), 2, ["buget: unknown key", "allowed here", "budget"]),
    "an unknown nested key": (setting("pack.shards=4"), 2, ["pack.shards: unknown key", "num_shards"]),
    "a wrong type": (setting("pack.num_shards=many"), 2, ["pack.num_shards", "'many'", "integer"]),
    "out of range": (
        setting("pack.sequence_length=7"),
        2,
        ["pack.sequence_length", "7", "greater than or equal to 16"],
    ),
    "one of a few": (setting("layout=sideways"), 2, ["layout", "'sideways'", "'after_document'"]),
    "--set without =": (setting("nonsense"), 2, ["--set 'nonsense'", "key.path=value"]),
    "--set below a value": (setting("output.folder=x"), 2, ["--set output", "has no keys under it"]),
    "--set past a list": (setting("budget.tiers.9.max_tokens=5"), 2, ["--set budget.tiers.9", "entries 0 to 2"]),
    # --- what belongs together
    "source and sources": (setting("sources=[{name: a, path: x}]"), 2, ["either source or sources"]),
    "a unit without a price": (setting("budget.dollars=5"), 2, ["models.pretend.dollars_per_million_tokens: not set"]),
    "a tier's model isn't there": (setting("budget.tiers.1.model=x"), 2, ["budget.tiers.1.model: 'x'", "pretend"]),
    "tiers of one name": (setting("budget.tiers.1.name=deep"), 2, ["tier names must differ", "deep"]),
    "fixed without a tier": (setting("budget.policy=fixed"), 2, ["policy fixed needs fixed_tier", "brief"]),
    "a cap over the context": (
        setting("budget.tiers.1.max_tokens=4096"),
        2,
        ["budget.tiers.1.max_tokens", "max_model_len"],
    ),
    "no room for a segment": (
        setting("models.pretend.max_model_len=200"),
        2,
        ["max_tokens 128", "no room for a segment", "max_model_len 200"],
    ),
    "a budget without a price": (
        setting("budget.thinking_tokens_per_source_token=null", "budget.dollars=1"),
        2,
        ["models.pretend.dollars_per_million_tokens: not set", "set it, or give the budget"],
    ),
    "a budget that can't be spent": (
        setting("budget.thinking_tokens_per_source_token=1e6"),
        2,
        ["budget.thinking_tokens_per_source_token: 1000000", "can't be spent", "allowed: from 0 to"],
    ),
    "the same, planned": (
        setting("budget.thinking_tokens_per_source_token=1e6", command="plan"),
        2,
        ["can't be spent", "allowed: from 0 to"],
    ),
    "a pilot before the scores": (["plan", "{config}", "--pilot", "4"], 2, ["plan --pilot", "thoughtmill score"]),
    "a prompt that isn't there": (setting("budget.tiers.1.prompt=terse"), 2, ["prompt 'terse'", "brief", "expert"]),
    # --- the source
    "a wrong glob": (setting("source.path={tmp}/*.nothing"), 2, ["source.path", "nothing matches", "name an existing"]),
    "an unknown ending": (
        setting("source.path={tmp}/table.csv"),
        2,
        ["source.format", "table.csv", "set source.format"],
    ),
    "compressed otherwise": (
        setting("source.path={tmp}/a.jsonl.bz2", "source.format=jsonl"),
        2,
        ["a.jsonl.bz2", "recompress"],
    ),
    "a file cut short": (setting("source.path={tmp}/cut.jsonl.gz"), 1, ["cannot read", "cut.jsonl.gz"]),
    "a wrong text field": (
        setting("source.text_field=body"),
        1,
        ["missing_text 8", "source.text_field: 'body'", "quarantine"],
    ),
    "an unknown store": (setting("output=teleport://bucket/out"), 2, ["teleport", "no filesystem"]),
    "a store whose package is missing": (setting("source.path=abfs://c/raw"), 2, ["abfs", "pip install", "azure"]),
    # --- tokenizers, models, servers
    "no such tokenizer": (setting("tokenizer=./no-such-folder"), 1, ["no-such-folder", "there is no such folder"]),
    "a folder without a tokenizer": (setting("tokenizer={tmp}/empty"), 1, ["no tokenizer.json", "save_pretrained"]),
    "an empty folder as model": (
        setting("models.pretend.engine=vllm", "models.pretend.name={tmp}/empty"),
        1,
        ["tokenizer.json", "{tmp}/empty"],
    ),
    "vLLM is not installed": (
        setting("models.pretend.engine=vllm", "models.pretend.name={tokenizer}"),
        1,
        ["needs vLLM", "pip install 'thoughtmill[vllm]'"],
    ),
    "servers without an address": (setting("models.pretend.engine=endpoint"), 2, ["models.pretend", "urls", "http://"]),
    "an address that is none": (
        setting("models.pretend.engine=endpoint", "models.pretend.urls=[localhost]"),
        2,
        ["models.pretend", "localhost", "http"],
    ),
    "a key that isn't set": (
        setting(
            "models.pretend.engine=endpoint",
            "models.pretend.urls=[http://localhost:1]",
            "models.pretend.name={tokenizer}",
            "models.pretend.api_key_env=NO_SUCH_KEY",
        ),
        2,
        ["api_key_env", "NO_SUCH_KEY is not set"],
    ),
    "an engine argument that isn't there": (
        setting("models.pretend.engine_args.speed=9"),
        2,
        ["engine_args.speed", "tokens_per_second"],
    ),
    "a benchmark that isn't there": (
        setting("select.decontaminate.paths=[{tmp}/mmlu.jsonl]"),
        2,
        ["select.decontaminate", "mmlu.jsonl"],
    ),
    # --- the output and the stages
    "an output of another config": (
        setting("difficulty.segment_tokens=32", "output={tmp}/done"),
        2,
        ["{tmp}/done", "segment_tokens: 64 → 32", "--replace"],
    ),
    "an output that can't be written": (
        setting("output={tmp}/list.yaml/out"),
        1,
        ["cannot create", "list.yaml/out", "Not a directory"],
    ),
    "a stage without the one before": (["pack", "{config}"], 1, ["thoughtmill score"]),
    "scores that aren't there": (setting("scored={tmp}/elsewhere"), 1, ["elsewhere", "thoughtmill score"]),
    # --- the command line
    "a bad Beam option": (["run", "{config}", "--", "--no_such_option=1"], 2, ["no_such_option", "--help"]),
    "a stray word": (["run", "{config}", "--", "stray"], 2, ["'stray' is no option", "--runner"]),
    "an unknown command": (["mill", "{config}"], 2, ["mill", "--help"]),
    "status of nothing": (["status", "{tmp}/nothing"], 1, ["{tmp}/nothing holds no run"]),
    "verify of nothing": (["verify", "{tmp}/nothing"], 1, ["nothing", "MANIFEST.json"]),
    "report of nothing": (["report", "{tmp}/nothing"], 1, ["nothing", "thoughtmill"]),
    "inspect of nothing": (["inspect", "{tmp}/nothing"], 1, ["nothing", "thoughtmill"]),
    "a document that isn't there": (["inspect", "{tmp}/done", "--doc", "no-such-id"], 2, ["no-such-id"]),
    "an unknown form": (["export", "{tmp}/done", "--to", "csv", "--target", "{tmp}/x"], 2, ["csv", "megatron"]),
    "a file that init would overwrite": (["init", "{config}"], 2, ["exists", "name another file"]),
    "an unknown example": (["init", "{tmp}/new.yaml", "--example", "nope"], 2, ["nope", "rehearsal"]),
    "an unknown model": (["models", "fetch", "gpt-5"], 2, ["gpt-5", "smollm2-135m-instruct"]),
    "unknown arms": (["arms", "{config}", "--arms", "raw,legs"], 2, ["legs", "adaptive"]),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> Path:
    """A folder with a finished run."""
    from pipelines.run import mill
    from pipelines.yaml_config import from_mapping
    from tests.conftest import rehearsal_tree

    folder = tmp_path_factory.mktemp("done")
    (folder / "source.jsonl").write_text(
        '{"id": "a", "text": "A few words, said twice. A few words, said twice."}\n' * 9
    )
    mill(from_mapping(rehearsal_tree(folder, byte_tokenizer, str(folder / "source.jsonl"))))
    return folder


@pytest.fixture
def places(
    tmp_path: Path,
    write_jsonl: Callable[..., str],
    rehearsal_config: Callable[..., dict[str, Any]],
    byte_tokenizer: str,
    done: Path,
) -> dict[str, str]:
    """What stands for what in the commands."""
    source = write_jsonl([{"id": str(i), "text": f"Document {i}. " * 40} for i in range(8)])
    tree = rehearsal_config(source)
    (tmp_path / "mill.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "short.yaml").write_text(
        yaml.safe_dump({k: v for k, v in tree.items() if k not in ("tokenizer", "pack")})
    )
    (tmp_path / "broken.yaml").write_text("output: [1, 2\npack: }")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "latin.yaml").write_bytes("output: Käse".encode("latin-1"))
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "a.jsonl.bz2").write_bytes(b"BZh9")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"id": "1", "text": "some text"}\n' * 5000)[:100])
    (tmp_path / "empty").mkdir()
    (tmp_path / "done").symlink_to(done / "out")
    return {"{config}": str(tmp_path / "mill.yaml"), "{tmp}": str(tmp_path), "{tokenizer}": byte_tokenizer}


@pytest.mark.model
def test_no_gpu(
    places: dict[str, str], small_model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    overrides = ("difficulty.scorer=causal_lm", f"difficulty.model={small_model}", "difficulty.device=cuda")
    check((setting(*overrides), 2, ["difficulty.device", "no CUDA device", "'cpu'"]), places, monkeypatch, capfd)


def fill(text: str, places: dict[str, str]) -> str:
    for place, stands_for in places.items():
        text = text.replace(place, stands_for)
    return text


# These load transformers, or run a stage before the mistake shows.
SLOW = ("vLLM is not installed", "a key that isn't set", "an engine argument that isn't there", "a wrong text field")


@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MISTAKES]
)
def test_one_message(
    mistake: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "installed" in mistake:
        monkeypatch.setitem(sys.modules, "vllm", None)
    check(MISTAKES[mistake], places, monkeypatch, capfd)


def check(
    case: tuple[list[str], int, list[str]],
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Run the command in this process, and look at what it says."""
    arguments, code, words = case
    monkeypatch.setattr(sys, "argv", ["thoughtmill", *(fill(argument, places) for argument in arguments)])
    # The logging of this process is the test runner's.
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    for word in words:
        assert fill(word, places) in said.err, said.err
    assert ended.value.code == code, said.err
    assert "Traceback" not in said.err and len(said.err.splitlines()) <= MAX_LINES, said.err
    assert not said.out, "what went wrong is no result"


def test_debug_shows_where_it_happened(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["thoughtmill", "--debug", *(fill(a, places) for a in setting("layout=sideways"))])
    monkeypatch.setattr(cli, "set_up_logging", lambda debug: None)
    monkeypatch.setitem(cli.DEBUG, "on", False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr().err
    assert ended.value.code == 2 and "Traceback" in said and "in validate" in said and "sideways" in said
