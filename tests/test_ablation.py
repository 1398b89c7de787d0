"""The training of an ablation: equal tokens, the same numbers after a kill, and documents that don't see each other."""

from __future__ import annotations

import json
import multiprocessing
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.ablation import curves
from pipelines.ablation.config import AblationConfig, EvaluatorConfig
from pipelines.ablation.evaluators import Setting
from pipelines.ablation.side_by_side import train_all
from pipelines.ablation.student import batch_of, labelled, logits_of, new_student, summed_nats
from pipelines.ablation.training import CHECKPOINT, Training, points_of, train
from pipelines.arms import mill_arms
from pipelines.config import MillConfig
from pipelines.yaml_config import from_mapping
from sharding import storage
from sharding.errors import MillError, RequestError
from sharding.shards.dataset import PackedDataset
from tests.conftest import rehearsal_tree

OWN = '''
class Letters:
    """How many of the texts that the student writes have an "e"."""

    def __init__(self, words=("word1",)):
        self.words = words

    def scores(self, generate):
        texts = generate(list(self.words), max_tokens=4, temperature=1.0, seed=3)
        return {"e": ["e" in text for text in texts], "nats": generate.log_probabilities(self.words, self.words)}
'''

STUDENT = {"layers": 2, "width": 32, "heads": 2}


def config_in(folder: Path, tokenizer: str, **ablation: Any) -> MillConfig:
    rng = random.Random(5)
    words = [f"word{rng.randrange(40)}" for _ in range(6_000)]
    source = folder / "source.jsonl"
    documents = [{"id": f"d{i}", "text": " ".join(words[i * 60 : i * 60 + rng.randrange(20, 60)])} for i in range(60)]
    source.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    tree = rehearsal_tree(
        folder,
        tokenizer,
        str(source),
        layout="before_segment",
        pack={"sequence_length": 128, "num_shards": 2, "validation_fraction": 0.2},
        ablation={
            "arms": ["raw", "adaptive"],
            "model": STUDENT,
            "tokens": 4096,
            "eval_every": 1024,
            "batch_tokens": 256,
            "seeds": [0],
            "warmup_steps": 2,
            "learning_rate": 3e-3,
            "parallel": 1,
            "evaluators": [{"name": f"{folder / 'own.py'}:Letters"}],
            "target": {"metric": "Letters.nats"},
            **ablation,
        },
    )
    return from_mapping(tree)


@pytest.fixture(scope="module")
def milled(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: str) -> MillConfig:
    config = config_in(tmp_path_factory.mktemp("ablation"), byte_tokenizer)
    mill_arms(config, ["adaptive"])
    return config


def training_in(folder: Path, milled: MillConfig, arm: str = "adaptive", seed: int = 0, **ablation: Any) -> Training:
    output = storage.join(milled.output, "arms", arm)
    setting = Setting(scores=milled.output, output=output, baseline=storage.join(milled.output, "arms", "raw"))
    return Training(
        arm=arm,
        seed=seed,
        setting=setting,
        folder=str(folder / arm / str(seed)),
        identity="i",
        config=replace(milled.ablation, **ablation),
    )


def test_a_student_learns_and_its_curve_says_so(milled: MillConfig, tmp_path: Path) -> None:
    training = training_in(tmp_path, milled)
    seen: list[int] = []
    curve = train(training, seen.append)
    assert [point.tokens for point in curve.points] == [0, 1024, 2048, 3072, 4096]
    assert seen == list(range(256, 4097, 256)) and curve.done
    nats = [point.train_nats for point in curve.points[1:]]
    assert nats[0] is not None and nats[-1] is not None and nats[-1] < nats[0] - 0.5
    assert curve.points[-1].scores["Letters.nats"] > curve.points[0].scores["Letters.nats"] + 1
    assert curves.read(training.folder) == curve
    assert curve.rows == len(PackedDataset(training.setting.output))
    # A second run finds it done: nothing is trained.
    again: list[int] = []
    assert train(training, again.append) == curve and again == [4096]


@pytest.mark.parametrize("how", [{"optimizer": "adamw"}, {"optimizer": "muon", "average_decay": 0.9}])
def test_what_is_killed_goes_on_to_the_same_numbers(milled: MillConfig, tmp_path: Path, how: dict[str, Any]) -> None:
    def training_at(place: str) -> Training:
        return training_in(tmp_path / place, milled, tokens=2048, eval_every=512, **how)

    whole = train(training_at("whole"))

    def kill(tokens: int) -> None:
        if tokens == 1280:
            raise KeyboardInterrupt

    killed = training_at("killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed, kill)
    begun = curves.read(killed.folder)
    assert begun is not None and [point.tokens for point in begun.points] == [0, 512, 1024] and not begun.done
    again: list[int] = []
    assert curves.same(train(killed, again.append), whole)
    assert again[0] == 1024 + 256, "what the checkpoint has is not trained again"
    states = [torch.load(Path(one.folder, CHECKPOINT))["model"] for one in (killed, training_at("whole"))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_evaluators_ask_the_running_mean_of_the_weights(milled: MillConfig, tmp_path: Path) -> None:
    def scores(**how: Any) -> list[float]:
        training = training_in(tmp_path / str(how), milled, tokens=1024, eval_every=256, **how)
        return [point.scores["Letters.nats"] for point in train(training).points]

    plain, lagging = scores(), scores(average_decay=0.9)
    assert scores(average_decay=1e-9) == pytest.approx(plain, abs=1e-5), "each step keeps next to nothing"
    assert lagging[:2] == pytest.approx(plain[:2], abs=1e-5), "after one step, that step is all there is"
    assert lagging[-1] < plain[-1] - 0.01, "early weights, which know less, are part of it"


def test_more_tokens_go_on_where_fewer_ended(milled: MillConfig, tmp_path: Path) -> None:
    longer = train(training_in(tmp_path / "at once", milled, tokens=1536, eval_every=512))
    train(training_in(tmp_path / "longer", milled, tokens=768, eval_every=512))  # ends between two points
    again: list[int] = []
    assert curves.same(
        train(training_in(tmp_path / "longer", milled, tokens=1536, eval_every=512), again.append), longer
    )
    assert again[0] == 768 + 256


def test_students_of_one_seed_begin_alike_and_others_do_not(milled: MillConfig) -> None:
    model = milled.ablation.model
    first, same, other = (new_student(model, 300, 64, seed) for seed in (0, 0, 1))
    weights = [one.get_input_embeddings().weight for one in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_token_sees_no_other_document_of_its_row(milled: MillConfig) -> None:
    """What a student expects in a document is the same whatever stands beside it, and as if it stood alone."""
    model = new_student(milled.ablation.model, 300, 64, 0).eval()
    rng = np.random.default_rng(0)
    one, two, three = (rng.integers(0, 300, size) for size in (20, 30, 14))

    def row_of(*documents: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.concatenate(documents)
        ends = np.cumsum([0, *map(len, documents)]).astype(np.int32)
        positions = np.concatenate([np.arange(len(document)) for document in documents])
        return {"input_ids": ids, "position_ids": positions, "labels": ids, "cu_seqlens": ends}

    def expected(*documents: np.ndarray) -> torch.Tensor:
        batch = batch_of([row_of(*documents)])
        with torch.no_grad():
            return logits_of(model, batch["input_ids"], batch["position_ids"], batch["mask"])[0]

    packed, otherwise, alone = expected(one, two, three), expected(three, two, one), expected(two)
    assert torch.allclose(packed[20:50], alone, atol=1e-5)
    assert torch.allclose(otherwise[14:44], alone, atol=1e-5)
    # The mask is what does it: as one document, the same tokens say something else.
    assert not torch.allclose(expected(np.concatenate([one, two, three]))[20:50], alone, atol=1e-3)


def test_the_loss_mask_of_the_corpus_is_respected(milled: MillConfig) -> None:
    rows = PackedDataset(storage.join(milled.output, "arms", "adaptive"), loss_mask="source_only")
    batch = batch_of([rows[0], rows[1]])
    model = new_student(milled.ablation.model, rows.vocab_size, 128, 0)
    counted = sum(int((row["labels"] != -100).sum()) for row in (rows[0], rows[1]))
    assert 0 < labelled(batch) == counted < 2 * 128
    nats = float(summed_nats(model, batch).detach())
    assert nats == pytest.approx(counted * np.log(rows.vocab_size), rel=0.05)
    everything = batch | {"labels": batch["input_ids"]}
    assert float(summed_nats(model, everything).detach()) > nats * 1.05


def test_micro_batches_change_nothing_but_memory(milled: MillConfig, tmp_path: Path) -> None:
    whole = train(training_in(tmp_path / "whole", milled, tokens=512, eval_every=256))
    parts = train(training_in(tmp_path / "parts", milled, tokens=512, eval_every=256, micro_batch_tokens=128))
    for one, other in zip(whole.points[1:], parts.points[1:], strict=True):
        assert one.train_nats == pytest.approx(other.train_nats, abs=1e-4)


@pytest.mark.slow
def test_students_side_by_side_come_to_the_same(milled: MillConfig, tmp_path: Path) -> None:
    alone = train(training_in(tmp_path / "alone", milled, tokens=512, eval_every=256))
    together = [training_in(tmp_path / "two", milled, arm, tokens=512, eval_every=256) for arm in ("adaptive", "raw")]
    seen: dict[str, int] = {}
    train_all(together, 2, lambda training, tokens: seen.update({training.arm: tokens}))
    assert seen == {"adaptive": 512, "raw": 512}
    found = curves.read(together[0].folder)
    assert found is not None and curves.same(found, alone)
    seen.clear()
    train_all([*together, *together], 3, lambda training, tokens: seen.update({training.arm: tokens}))
    assert seen == {"adaptive": 512, "raw": 512} and not multiprocessing.active_children()


@pytest.mark.slow
def test_a_failure_beside_others_is_told(milled: MillConfig, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("class Bad:\n    def scores(self, generate):\n        return {'x': [1 / 0]}\n")
    config = replace(milled.ablation, evaluators=(EvaluatorConfig(name=f"{tmp_path / 'bad.py'}:Bad"),))
    trainings = [replace(training_in(tmp_path, milled, arm), config=config) for arm in ("raw", "adaptive")]
    with pytest.raises(MillError, match=r"evaluator .*bad\.py:Bad: ZeroDivisionError: division by zero"):
        train_all(trainings, 2)


def test_points_are_where_they_are_asked_for() -> None:
    config = AblationConfig(tokens=1000, eval_every=300)
    assert points_of(config, 100) == [0, 300, 600, 900, 1000]
    assert points_of(config, 400) == [0, 400, 800, 1200], "whole steps, and at least the tokens asked for"
    assert points_of(AblationConfig(tokens=1000), 100) == list(range(0, 1001, 100)), "never closer than a step"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"model": {"width": 30, "heads": 4}}, "ablation.model: .*: width: 30 is no even multiple of heads 4"),
        ({"model": {"config": "a", "checkpoint": "b"}}, "ablation.model: .*: checkpoint: there is a config as well"),
        ({"evaluators": [{"name": "held"}]}, "ablation.evaluators.0: .*: name: 'held' is none of heldout, hard_tokens"),
        ({"seeds": [1, 1]}, r"ablation: .*: seeds: \[1, 1\] must differ"),
        ({"baseline": "none"}, "ablation: .*: baseline: 'none' is not one of raw, adaptive"),
        ({"outputs": {"raw": "x"}}, "ablation: .*: arms: 'raw' is there more than once"),
        ({"influence": {"arm": "x"}}, r"ablation\.influence\.arm: 'x' is not one of raw, adaptive"),
        ({"optimizer": "sgd"}, "ablation.optimizer"),
    ],
)
def test_a_wrong_section_names_key_and_value(
    tmp_path: Path, byte_tokenizer: str, section: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        config_in(tmp_path, byte_tokenizer, **section)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"batch_tokens": 100}, "ablation.batch_tokens: 100 is less than one sequence of 128 tokens"),
        ({"micro_batch_tokens": 100}, "ablation.micro_batch_tokens: 100 is less than one sequence of 128"),
        ({"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_steps": 0}, "lower ablation.learning_rate"),
    ],
)
def test_a_section_that_does_not_fit_the_shards(
    milled: MillConfig, tmp_path: Path, section: dict[str, Any], said: str
) -> None:
    with pytest.raises((RequestError, MillError), match=said):
        train(training_in(tmp_path, milled, **section))


def test_a_damaged_checkpoint_is_named(milled: MillConfig, tmp_path: Path) -> None:
    training = training_in(tmp_path, milled)
    Path(training.folder).mkdir(parents=True)
    Path(training.folder, CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(MillError, match=r"checkpoint\.pt can't be read .*remove it"):
        train(training)
