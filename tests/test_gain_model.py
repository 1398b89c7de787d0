"""The model of gain: its features, its fit, what it says where there is nothing to learn, and its file."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest

from benchmarks.learned_budget import NOISE_NATS, pilot
from benchmarks.learned_budget_corpora import ONE_TIER, THREE_TIERS, SimulatedCorpus, simulate
from difficulty.budget.tiers import TierConfig
from difficulty.gain import fitting
from difficulty.gain.components import fit_components
from difficulty.gain.features import NUMBERS, fit_features
from difficulty.gain.fitting import Fitted, Observations, fit
from difficulty.gain.model import GainModel
from sharding.errors import MillError, RequestError
from sharding.records.types import ScoredSegment

SEGMENTS = 600


@pytest.fixture(scope="module")
def corpus() -> SimulatedCorpus:
    return simulate("kind and difficulty", SEGMENTS, 1)


@pytest.fixture(scope="module")
def fitted(corpus: SimulatedCorpus) -> Fitted:
    return fit(pilot(corpus, 400, 1), corpus.segments, corpus.tiers)


def segment(ids: list[int], nats: float = 1.0, memory: float | None = None, **more: Any) -> ScoredSegment:
    per_token = np.full(len(ids), nats, np.float16)
    fields = {"doc_id": "d", "segment_index": 0, "num_segments": 1, "token_start": 0, "difficulty_nats": nats}
    return ScoredSegment(
        **fields
        | {
            "input_ids": np.array(ids, np.uint32),
            "surprisal_nats": per_token,
            "entropy_nats": per_token / 2,
            "memory_nats": np.zeros(0, np.float16) if memory is None else np.full(len(ids), memory, np.float16),
        }
        | more
    )


def constant(corpus: SimulatedCorpus, gains: np.ndarray, tiers: tuple[TierConfig, ...] = ONE_TIER) -> Observations:
    """Observations of the first segments, as they are given."""
    names = [tier.name for tier in tiers if not tier.skips]
    n = len(gains)
    return Observations(
        segments=corpus.segments[:n],
        documents=corpus.documents[:n],
        tiers=[names[i % len(names)] for i in range(n)],
        gain_nats=gains,
        chances=np.full(n, 1 / len(names)),
    )


# --- features ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_segment_are_what_its_record_says(corpus: SimulatedCorpus) -> None:
    from difficulty.gain.features import raw_numbers

    found = dict(zip(NUMBERS, raw_numbers([segment([1, 2, 3, 4], nats=3.0, memory=1.0)])[0], strict=False))
    assert found["mean nats"] == 3.0 and found["mean entropy"] == 1.5 and found["nats minus entropy"] == 1.5
    assert found["entropy per nat"] == 0.5 and found["share that memory covers"] == 1.0
    assert found["log length"] == pytest.approx(np.log(4)) and found["log difficulty"] == pytest.approx(np.log(4))
    assert dict(zip(NUMBERS, raw_numbers([segment([1], memory=5.0)])[0], strict=False))["share that memory covers"] == 0


@pytest.mark.parametrize(
    "odd",
    [
        segment([0]),
        segment([], nats=0.0),
        segment([2**31], nats=0.0),
        segment([7] * 2000, nats=60_000.0),
        segment([1, 2], nats=-3.0, difficulty_nats=0.0),
        segment([1, 2], memory=0.0, source="never seen"),
    ],
    ids=["one token", "no token", "unknown token", "very hard", "below its reference", "new source"],
)
def test_an_odd_segment_has_a_finite_gain(fitted: Fitted, odd: ScoredSegment) -> None:
    gains = fitted.model.expected([odd])
    assert np.isfinite(gains.mean).all() and np.isfinite(gains.variance).all() and (gains.variance >= 0).all()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_corpus_of_a_few_segments_has_features(number: int) -> None:
    few = [segment([1, 2, 3 + i], source=f"s{i}") for i in range(number)]
    features = fit_features(few)
    assert np.isfinite(features.rows(few)).all()
    assert features.rows(few).shape == (number, len(features.groups))


def test_kinds_are_found_in_tokens_alone(corpus: SimulatedCorpus) -> None:
    """Two halves of the corpus of the same kinds lie nearer to each other than those of other kinds."""
    random = np.random.default_rng(0)
    ids = [random.integers(100 * (i % 2), 100 * (i % 2) + 100, 200) for i in range(60)]
    texts = [segment(list(own)) for own in ids]
    features = fit_features(texts)
    kinds = features.rows(texts)[:, features.groups == 4]
    first, second = kinds[::2], kinds[1::2]
    apart = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert apart > 5 * np.linalg.norm(first[:15].mean(axis=0) - first[15:].mean(axis=0))


def test_a_new_source_is_taken_for_the_average(corpus: SimulatedCorpus) -> None:
    features = fit_features(corpus.segments)
    row = features.rows([segment([1, 2], source="never seen")])[0]
    groups = np.isin(features.groups, [5, 9])
    assert len(features.sources) == 6 and not row[groups].any()


# --- the model --------------------------------------------------------------------------------------------------------


def test_a_gain_follows_from_the_segment_alone_to_the_last_bit(corpus: SimulatedCorpus, fitted: Fitted) -> None:
    some = corpus.segments[:60]
    together = fitted.model.expected(some)
    for size in (1, 7, 59):
        for start in range(0, 60 - size + 1, size):
            part = fitted.model.expected(some[start : start + size])
            assert (part.mean == together.mean[start : start + size]).all()
            assert (part.variance == together.variance[start : start + size]).all()
    assert fitted.model.expected([]).mean.shape == (0, 1)


def test_the_same_pilot_teaches_the_same(corpus: SimulatedCorpus, fitted: Fitted) -> None:
    again = fit(pilot(corpus, 400, 1), corpus.segments, corpus.tiers)
    assert again.model.digest == fitted.model.digest
    assert again.report == fitted.report


def test_the_file_holds_the_model_bit_for_bit(corpus: SimulatedCorpus, fitted: Fitted) -> None:
    text = json.dumps(fitted.model.to_json(), allow_nan=False)
    assert len(text) < 400_000
    for again in (GainModel.from_json(json.loads(text)), pickle.loads(pickle.dumps(fitted.model))):  # noqa: S301
        assert again.digest == fitted.model.digest and again.tiers == ("think",)
        found, wanted = again.expected(corpus.segments[:50]), fitted.model.expected(corpus.segments[:50])
        assert (found.mean == wanted.mean).all() and (found.variance == wanted.variance).all()
    json.dumps(fitted.report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 99),
        (("tiers",), []),
        (("tiers",), ["think", "think"]),
        (("weight",), float("nan")),
        (("weight",), 1.5),
        (("weight",), None),
        (("kind_scale",), 0),
        (("arrays", "coefficients", "base64"), "not base64!"),
        (("arrays", "coefficients", "shape"), [2, 2]),
        (("arrays", "prior", "base64"), "AAAAAAAA+H8="),
        (("arrays", "tokens"), None),
        (("arrays", "tokens", "shape"), [-1, -1]),
        (("sources",), ["one more"] * 9),
    ],
)
def test_a_file_that_is_no_model_is_told(fitted: Fitted, path: tuple[str, ...], value: Any) -> None:
    values = copy.deepcopy(fitted.model.to_json())
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(MillError, match=r"no gain model.*--explore"):
        GainModel.from_json(values)


@pytest.mark.parametrize("values", [{}, {"format": 1}, [], None, {"format": 1, "arrays": []}])
def test_something_else_is_no_model(values: Any) -> None:
    with pytest.raises(MillError, match="no gain model"):
        GainModel.from_json(values)


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_what_pays_is_learned_and_told(corpus: SimulatedCorpus, fitted: Fitted) -> None:
    gains = fitted.model.expected(corpus.segments).mean[:, 0]
    assert np.corrcoef(gains, corpus.gains[:, 0])[0, 1] > 0.7
    assert fitted.model.weight > 0.9 and fitted.report.promises
    assert fitted.report.deciles[0].mean_nats > fitted.report.deciles[-1].mean_nats + 1
    assert fitted.report.lift_low_nats is not None and fitted.report.lift_low_nats > 0
    assert any(word.startswith("by kind of text") for word in fitted.report.words)
    assert not any("don't buy" in word for word in fitted.report.words)


def test_without_lift_segments_are_ordered_as_the_prior_does(corpus: SimulatedCorpus) -> None:
    """The gain is that of difficulty, exactly: nothing else may move a segment."""
    difficulty = np.array([segment.difficulty_nats for segment in corpus.segments])
    gains = difficulty / difficulty.mean() + np.random.default_rng(3).normal(0, NOISE_NATS, SEGMENTS)
    model = fit(constant(corpus, gains), corpus.segments, ONE_TIER).model
    expected = model.expected(corpus.segments).mean[:, 0]
    assert model.weight < 0.8
    best = np.argsort(-expected)[: SEGMENTS // 4]
    assert difficulty[best].sum() > 0.97 * np.sort(difficulty)[-SEGMENTS // 4 :].sum()


def test_a_handful_of_documents_leaves_the_prior_alone(corpus: SimulatedCorpus) -> None:
    found = fit(constant(corpus, np.arange(12.0)), corpus.segments, ONE_TIER)
    expected = found.model.expected(corpus.segments).mean[:, 0]
    difficulty = np.array([segment.difficulty_nats for segment in corpus.segments])
    assert found.model.weight == 0
    assert (np.diff(expected[np.argsort(difficulty)]) >= 0).all() and (expected > 0).all()
    assert found.report.tiers[0].low_nats is None and not found.report.promises


@pytest.mark.parametrize("mean", [0.0, -2.0])
def test_a_loss_is_not_promised_as_a_gain(corpus: SimulatedCorpus, mean: float) -> None:
    gains = mean + np.random.default_rng(5).normal(0, NOISE_NATS, 400)
    report = fit(constant(corpus, gains), corpus.segments, ONE_TIER, paying_nats=0.5).report
    assert not report.promises
    [advice] = [word for word in report.words if "don't buy" in word]
    # (1.645 + 0.842)² · 25 / 0.25 of independent observations
    assert report.needed_observations == pytest.approx(618, rel=0.25)
    assert f"{report.needed_observations:,} tries" in advice


def test_a_tier_that_was_tried_rarely_counts_by_what_it_stands_for(corpus: SimulatedCorpus) -> None:
    """Half of the tries had a chance of 0.1 and gain 10, the others one of 0.9 and gain 0: the mean is 9, not 5."""
    rare = np.arange(400) % 8 < 4
    tried = constant(corpus, np.where(rare, 10.0, 0.0))
    tried = Observations(tried.segments, tried.documents, tried.tiers, tried.gain_nats, np.where(rare, 0.1, 0.9))
    tier = fit(tried, corpus.segments, ONE_TIER).report.tiers[0]
    assert tier.mean_nats == pytest.approx(9.0)
    assert tier.low_nats is not None and tier.low_nats < 9.0


def test_tiers_share_what_is_common_to_them() -> None:
    corpus = simulate("three tiers", SEGMENTS, 2)
    model = fit(pilot(corpus, 300, 2), corpus.segments, THREE_TIERS).model
    gains = model.expected(corpus.segments).mean
    assert model.tiers == ("brief", "deep", "other")
    for tier in range(3):
        assert np.corrcoef(gains[:, tier], corpus.gains[:, tier])[0, 1] > 0.5


def test_no_document_is_predicted_by_a_model_that_saw_it(
    corpus: SimulatedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is measured of a document doesn't move what is predicted of it out of fold."""
    predicted = []
    real = fitting.make_report
    monkeypatch.setattr(
        fitting, "make_report", lambda model, tried, **k: predicted.append(tried) or real(model, tried, **k)
    )
    gains = corpus.gains[:200, 0] + np.random.default_rng(0).normal(0, 1, 200)
    for change in (0.0, 50.0):
        fit(constant(corpus, gains + change * (corpus.documents[:200] == 7)), corpus.segments, ONE_TIER)
    of_document = corpus.documents[:200] == 7
    assert of_document.sum() == 4
    assert (predicted[0].predicted[of_document] == predicted[1].predicted[of_document]).all()
    assert (predicted[0].predicted[~of_document] != predicted[1].predicted[~of_document]).any()


def test_the_same_measurement_three_times_says_no_more_than_once(corpus: SimulatedCorpus) -> None:
    """As where all tiers are measured on one continuation: what they share must not count as often as there are."""
    gains = np.random.default_rng(9).normal(0, NOISE_NATS, 150)
    documents = np.arange(150)
    once = constant(corpus, gains)
    once = Observations(once.segments, documents, once.tiers, gains, np.ones(150))
    thrice = Observations(
        [*once.segments] * 3, np.tile(documents, 3), [*once.tiers] * 3, np.tile(gains, 3), np.ones(450)
    )
    found, wanted = (fit(tried, corpus.segments, ONE_TIER) for tried in (thrice, once))
    assert found.model.weight == pytest.approx(wanted.model.weight, abs=0.01)
    assert found.report.tiers[0].low_nats == pytest.approx(wanted.report.tiers[0].low_nats, abs=0.01)


def test_what_was_tried_must_fit_the_config(corpus: SimulatedCorpus) -> None:
    tried = constant(corpus, np.ones(40), THREE_TIERS)
    with pytest.raises(RequestError, match=r"tried tier brief.*doesn't have"):
        fit(tried, corpus.segments, ONE_TIER)
    with pytest.raises(RequestError, match="never tried tier brief"):
        fit(constant(corpus, np.ones(40)), corpus.segments, (*ONE_TIER, *THREE_TIERS[1:]))
    with pytest.raises(MillError, match="measured no gain"):
        fit(constant(corpus, np.ones(0)), corpus.segments, ONE_TIER)
    with pytest.raises(MillError, match="no numbers"):
        fit(constant(corpus, np.full(40, np.nan)), corpus.segments, ONE_TIER)


# --- the arithmetic ---------------------------------------------------------------------------------------------------


def test_the_posterior_is_that_of_ridge_under_the_variances_found() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 7))
    observed = rows @ np.array([1.0, 0.5, -0.5, 0.0, 0.0, 0.0, 0.0]) + random.normal(size=300)
    groups = np.array([0, 1, 1, 1, 2, 2, 2])
    found = fit_components(rows, observed, np.ones(300), groups)
    penalty = np.diag(found.noise / found.variances[groups])
    assert found.mean == pytest.approx(np.linalg.solve(rows.T @ rows + penalty, rows.T @ observed), abs=1e-3)
    assert found.variances[1] > 3 * found.variances[2]
    without = fit_components(rows[:, :1], observed, np.ones(300), groups[:1])
    assert found.evidence - without.evidence > 10


def test_groups_that_tell_nothing_are_not_believed() -> None:
    evidence = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = np.column_stack([random.exponential(1, 400), random.normal(size=(400, 10))])
        observed = rows[:, 0] + random.normal(0, NOISE_NATS, 400)
        found, alone = (
            fit_components(rows[:, :columns], observed, np.ones(400), np.array([0] + [1] * 10)[:columns])
            for columns in (11, 1)
        )
        evidence.append(found.evidence - alone.evidence)
    assert np.mean(np.array(evidence) > 0) <= 0.15


def test_a_gain_that_is_the_same_at_every_difficulty_is_not_looked_for_in_it(corpus: SimulatedCorpus) -> None:
    """What decides is the source; that the hardest were tried most often must not make them look better."""
    sources = simulate("source", SEGMENTS, 1)
    model = fit(pilot(sources, 400, 1), sources.segments, ONE_TIER).model
    gains = model.expected(sources.segments).mean[:, 0]
    difficulty = np.array([segment.difficulty_nats for segment in sources.segments])
    assert abs(np.corrcoef(gains, difficulty)[0, 1]) < 0.25 < np.corrcoef(gains, sources.gains[:, 0])[0, 1]
