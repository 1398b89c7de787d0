"""Nothing that comes with a model, an output or a source is run: no code of a model unless named, no pickle at all."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from augment.engines.config import ModelConfig
from augment.requests.dialects import load_dialect
from difficulty.config import DifficultyConfig
from pipelines.yaml_config import from_mapping
from sharding.errors import MillError, RequestError
from sharding.sources import SourceConfig
from tests.source_files import read_all

ROOT = Path(__file__).parent.parent
PACKAGES = ("augment", "difficulty", "pipelines", "sharding")

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Touch:
    """What a pickle can do when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Is there when code that came with something has run."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "it-ran"


@pytest.fixture
def model_with_code(tmp_path: Path, byte_tokenizer: str, mark: Path) -> str:
    """A model and tokenizer that want classes of their own."""
    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer, folder)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes, **sizes}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


@pytest.mark.slow
def test_the_code_of_a_scorer_runs_only_where_it_is_named(model_with_code: str, mark: Path) -> None:
    from difficulty.scorers import make_scorer

    assert not DifficultyConfig(model=model_with_code).trust_remote_code
    with pytest.raises(MillError):
        make_scorer(DifficultyConfig(model=model_with_code))
    assert not mark.exists()
    with pytest.raises(MillError):  # there are no weights
        make_scorer(DifficultyConfig(model=model_with_code, trust_remote_code=True))
    assert mark.exists(), "the test shows nothing: the code would not have run either way"


@pytest.mark.slow
def test_the_code_of_a_generators_tokenizer_runs_only_where_it_is_named(model_with_code: str, mark: Path) -> None:
    model = ModelConfig(engine="vllm", name=model_with_code)
    try:
        load_dialect(model)
    except MillError as error:
        assert "trust_remote_code" in str(error)
    assert not mark.exists()
    load_dialect(ModelConfig(engine="vllm", name=model_with_code, engine_args={"trust_remote_code": True}))
    assert mark.exists(), "the test shows nothing: the code would not have run either way"


@pytest.mark.slow
def test_a_checkpoint_that_is_a_pickle_runs_nothing(tmp_path: Path, byte_tokenizer: str, mark: Path) -> None:
    import torch

    from difficulty.scorers import make_scorer

    folder = tmp_path / "model"
    shutil.copytree(byte_tokenizer, folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 2002, **sizes}))
    torch.save({"lm_head.weight": Touch(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(MillError):
        make_scorer(DifficultyConfig(model=str(folder)))
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists(), "the test shows nothing: the pickle does nothing"


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.npy", "a.pt", "a.jsonl", "a.txt", "a.parquet", "a.arrow"])
def test_a_source_that_is_a_pickle_runs_nothing(tmp_path: Path, name: str, mark: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Touch(mark)))
    try:
        for record in read_all(SourceConfig(path=str(path))):
            assert getattr(record, "reason", "document") in {"document", "malformed_json", "invalid_utf8", "empty"}
    except (MillError, RequestError) as error:
        assert name in str(error)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # noqa: S301
    assert mark.exists(), "the test shows nothing: the pickle does nothing"


def test_no_config_turns_it_on_unasked(rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    config = from_mapping(rehearsal_config("in.jsonl"))
    assert not config.difficulty.trust_remote_code
    assert not any("trust_remote_code" in model.engine_args for model in config.models.values())
    for path in (ROOT / "configs").glob("*.yaml"):
        assert "trust_remote_code" not in path.read_text(), path


UNPICKLERS = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_nothing_is_unpickled() -> None:
    """Nothing that reads pickles is imported (the error may be, to be caught), and nothing is asked to."""
    seen = 0
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            seen += 1
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} != {"UnpicklingError"}:
                names.append(node.module or "")
            assert not {name.partition(".")[0] for name in names} & UNPICKLERS, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called != "torch.load" or told.get("weights_only") == "True", path  # tensors and plain numbers
                assert called not in ("np.load", "numpy.load", "eval", "exec", "yaml.unsafe_load"), path
                assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, path
    assert seen > 10_000
