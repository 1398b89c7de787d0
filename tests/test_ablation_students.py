"""Students and what they are asked: what they write, how they are made, evaluators of one's own, progress."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.ablation import evaluators
from pipelines.ablation.config import AblationConfig, EvaluatorConfig, StudentConfig
from pipelines.ablation.evaluators import Setting
from pipelines.ablation.generation import Generate, generate_ids, nats_behind
from pipelines.ablation.progress import Progress
from pipelines.ablation.student import new_student, read_texts
from pipelines.terminal import Terminal
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer

SMALL = StudentConfig(layers=2, width=32, heads=2)
SETTING = Setting(scores="s", output="o", baseline="b")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return new_student(SMALL, 300, 64, 0).eval()


def prompts(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 300, size) for size in sizes]


def test_a_batch_of_prompts_is_answered_as_each_alone(model: Any) -> None:
    asked = prompts(7, 3, 12, 3)
    together = generate_ids(model, asked, max_tokens=6)
    for prompt, written in zip(asked, together, strict=True):
        [alone] = generate_ids(model, [prompt], max_tokens=6)
        assert alone.tolist() == written.tolist() and len(alone) == 6


def test_what_is_sampled_follows_from_the_seed(model: Any) -> None:
    def written(seed: int) -> list[list[int]]:
        return [ids.tolist() for ids in generate_ids(model, prompts(4, 5), max_tokens=8, temperature=1.0, seed=seed)]

    state = torch.random.get_rng_state()
    assert written(1) == written(1) != written(2)
    assert torch.equal(state, torch.random.get_rng_state()), "training draws nothing else for it"


def test_a_text_ends_before_its_stop(model: Any) -> None:
    [whole] = generate_ids(model, prompts(5), max_tokens=8, temperature=1.0)
    at = next(i for i in range(1, 7) if whole[i : i + 2].tolist() not in [whole[j : j + 2].tolist() for j in range(i)])
    [stopped] = generate_ids(model, prompts(5), max_tokens=8, temperature=1.0, stop=[whole[at : at + 2]])
    assert stopped.tolist() == whole[:at].tolist()


def test_tokens_that_the_tokenizer_lacks_are_not_written(model: Any) -> None:
    written = generate_ids(model, prompts(4, 6), max_tokens=8, temperature=5.0, vocab_size=7)
    assert max(ids.max() for ids in written) < 7


def test_nats_behind_a_prompt_are_those_of_the_whole_text(model: Any) -> None:
    first, second = prompts(6, 9)
    [found] = nats_behind(model, [first], [second])
    [(nats, _)] = read_texts(model, [np.concatenate([first, second])])
    assert found == pytest.approx(nats[5:]) and len(found) == 9
    # Beside longer texts, and so padded, it is the same.
    padded = nats_behind(model, [first, *prompts(20)], [second, *prompts(30)])[0]
    assert padded == pytest.approx(found, abs=1e-4)


def test_texts_of_a_students_own(byte_tokenizer: str) -> None:
    tokenizer = load_tokenizer(byte_tokenizer)
    student = new_student(SMALL, tokenizer.vocab_size, 64, 0).eval()
    generate = Generate(student, tokenizer)
    [text] = generate(["Once"], max_tokens=12, temperature=1.0)
    assert text and generate(["Once"], max_tokens=12, temperature=1.0, stop=[text[3:5]]) == [
        text[: text.find(text[3:5])]
    ]
    likely, unlikely = generate.log_probabilities(["Once", "Once"], [text[:1], text[:1] * 9])
    assert unlikely < likely < 0


def test_a_student_goes_on_from_a_checkpoint(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    on = new_student(StudentConfig(checkpoint=str(tmp_path / "saved")), 300, 64, 5)
    assert all(torch.equal(on.state_dict()[name], weights) for name, weights in model.state_dict().items())
    anew = new_student(StudentConfig(config=str(tmp_path / "saved")), 301, 64, 5)
    assert anew.config.hidden_size == 32 and anew.get_input_embeddings().weight.shape[0] == 301
    with pytest.raises(
        RequestError, match=r"ablation\.model\.checkpoint: .*saved' knows 300 tokens, the corpus has 301"
    ):
        new_student(StudentConfig(checkpoint=str(tmp_path / "saved")), 301, 64, 0)
    with pytest.raises(RequestError, match=r"ablation\.model\.checkpoint: .*nowhere' can't be loaded"):
        new_student(StudentConfig(checkpoint=str(tmp_path / "nowhere")), 300, 64, 0)


@pytest.mark.parametrize(
    ("code", "options", "error", "said"),
    [
        ("class Own:\n    pass\n", {}, RequestError, "has neither 'evaluate' nor 'scores'"),
        ("class Other:\n    pass\n", {}, RequestError, "can't be loaded: .*Own"),
        ("class Own(:\n", {}, RequestError, "can't be loaded"),
        ("class Own:\n    def scores(self, g): ...\n", {"x": 1}, RequestError, "with options .*takes no arguments"),
        ("class Own:\n    def scores(self, g): return {'a': []}\n", {}, MillError, "a has no item"),
        ("class Own:\n    def scores(self, g): return 3\n", {}, MillError, "scores gave int, not scores by name"),
        ("class Own:\n    def evaluate(self, m, t): return {'a': float('nan')}\n", {}, MillError, "Own.a is nan"),
        (
            "class Own:\n    def evaluate(self, m, t): raise KeyError('k')\n",
            {},
            MillError,
            "evaluator .*: KeyError: 'k'",
        ),
    ],
)
def test_an_evaluator_that_is_none_is_named(
    tmp_path: Path, code: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    config = EvaluatorConfig(name=f"{tmp_path / 'own.py'}:Own", options=options)
    with pytest.raises(error, match=said):
        evaluators.asked(config, evaluators.make(config, SETTING), None, None)  # type: ignore[arg-type]


def test_scores_of_ones_own_have_the_name_of_the_class(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Own:\n    def scores(self, generate): return {'a': [True, 0, 1, 0]}\n")
    config = EvaluatorConfig(name=f"{tmp_path / 'own.py'}:Own")
    assert evaluators.asked(config, evaluators.make(config, SETTING), None, None) == {"Own.a": 0.5}  # type: ignore[arg-type]
    before = evaluators.evaluator_digest(config.name)
    (tmp_path / "own.py").write_text("class Own:\n    pass\n")
    assert evaluators.evaluator_digest(config.name) != before


def test_a_log_has_a_line_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    now = [0.0]
    monkeypatch.setattr("pipelines.ablation.progress.time.monotonic", lambda: now[0])
    said = io.StringIO()
    terminal = Terminal()
    terminal.file = said
    config = AblationConfig(arms=("raw", "adaptive"), seeds=(0,), tokens=1000)
    with Progress(terminal, config) as progress:
        for tokens in (100, 200, 300):
            progress.step(SimpleNamespace(arm="raw", seed=0), tokens)  # type: ignore[arg-type]
            now[0] += 61
    assert "300 of 2,000 training tokens, 2 a second, 17 minutes left" in said.getvalue()
