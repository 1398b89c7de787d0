"""The benchmark of a learned budget: its corpora, its null, and its last line, at a small size."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import learned_budget
from benchmarks.learned_budget_corpora import TRUTHS, simulate


@pytest.mark.parametrize("name", list(TRUTHS))
def test_a_corpus_is_the_same_each_time_and_gains_about_one(name: str) -> None:
    corpus, again = simulate(name, 400, 3), simulate(name, 400, 3)
    assert (corpus.gains == again.gains).all()
    assert all((a.input_ids == b.input_ids).all() for a, b in zip(corpus.segments, again.segments, strict=True))
    wanted = 0.0 if name == "nothing" else 1.0
    assert corpus.gains[~corpus.is_noise, 0].mean() == pytest.approx(wanted, abs=0.4)
    assert corpus.is_noise.any() == (name == "noise")


def test_noise_is_as_surprising_as_the_hardest_text() -> None:
    corpus = simulate("noise", 400, 0)
    nats = np.array([segment.difficulty_nats for segment in corpus.segments])
    assert np.median(nats[corpus.is_noise]) > np.quantile(nats[~corpus.is_noise], 0.9)
    assert not corpus.gains[corpus.is_noise].any()


def test_knowing_the_gains_is_best_and_difficulty_is_as_good_where_it_decides() -> None:
    corpus = simulate("difficulty", 400, 0)
    best, adaptive = learned_budget.by_gain(corpus, corpus.gains), learned_budget.by_difficulty(corpus)
    assert adaptive.gain_nats == pytest.approx(best.gain_nats, rel=0.01)
    assert best.error < 0.01 and adaptive.error < 0.01
    kinds = simulate("kind", 400, 0)
    assert learned_budget.by_difficulty(kinds).gain_nats < 0.6 * learned_budget.by_gain(kinds, kinds.gains).gain_nats
    assert learned_budget.by_gain(kinds, -kinds.gains).gain_nats == 0


@pytest.mark.slow
def test_a_small_run_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    learned_budget.main(runs=1, num_segments=500, pilots=(400,))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["name"] == "learned_budget"
    figures = found["figures"]
    assert 0.5 < figures["gain_share_of_oracle_400"] <= 1.001
    assert figures["never_below_adaptive"] > 0.9 and figures["spend_error"] < 0.01
    assert 0 <= figures["budget_on_noise"] < 0.5 and 0 <= figures["false_promise_rate"] <= 0.5
