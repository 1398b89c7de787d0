"""The training of an ablation: equal tokens, the same numbers after a kill, and documents that don't see each other."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.ablation import curves
from pipelines.ablation.evaluators import Setting
from pipelines.ablation.training import Training, train
from pipelines.arms import mill_arms
from pipelines.config import MillConfig
from pipelines.yaml_config import from_mapping
from sharding import storage
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
    assert train(training, lambda tokens: pytest.fail("trained again")) == curve
