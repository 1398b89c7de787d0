"""Scorers: windows and batches as tables, the rehearsal scorer, and the causal LM against a plain reference."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from difficulty.config import DifficultyConfig
from difficulty.scorers import describe_scorer, make_scorer
from difficulty.scorers.causal_lm import CausalLMScorer
from difficulty.scorers.causal_model import CausalModel
from difficulty.scorers.excess import ExcessLossScorer
from difficulty.scorers.protocol import TokenScores, score_documents
from difficulty.scorers.rehearsal import RehearsalScorer
from difficulty.scorers.windows import Window, batch_by_length, cut_windows
from sharding.errors import MillError, RequestError
from sharding.models.tokenizer import load_tokenizer

# --- windows and batches ----------------------------------------------------------------------------------------------

WINDOWS = {
    "nothing": (0, 8, 2, []),
    "shorter than a window": (5, 8, 2, [(0, 0, 5)]),
    "exactly a window": (8, 8, 2, [(0, 0, 8)]),
    "one more": (9, 8, 2, [(0, 0, 8), (6, 8, 9)]),
    "several": (21, 8, 2, [(0, 0, 8), (6, 8, 14), (12, 14, 20), (18, 20, 21)]),
    "no overlap": (10, 4, 0, [(0, 0, 4), (4, 4, 8), (8, 8, 10)]),
    "one new token each": (6, 4, 3, [(0, 0, 4), (1, 4, 5), (2, 5, 6)]),
}


@pytest.mark.parametrize(("num_tokens", "context", "minimum", "expected"), WINDOWS.values(), ids=WINDOWS)
def test_windows(num_tokens: int, context: int, minimum: int, expected: list[tuple[int, int, int]]) -> None:
    assert cut_windows(num_tokens, context, minimum) == [Window(*window) for window in expected]


@given(st.integers(0, 5000), st.integers(1, 300), st.data())
def test_every_token_is_scored_once_with_enough_before_it(num_tokens: int, context: int, data: st.DataObject) -> None:
    minimum = data.draw(st.integers(0, context - 1))
    windows = cut_windows(num_tokens, context, minimum)
    assert [token for w in windows for token in range(w.score_from, w.end)] == list(range(num_tokens))
    for window in windows:
        assert 0 <= window.start <= window.score_from < window.end <= window.start + context
        assert window.score_from - window.start >= min(minimum, window.score_from)
        assert window.start == 0 or window.score_from - window.start >= minimum


def test_windows_need_room_for_new_tokens() -> None:
    with pytest.raises(ValueError, match="below context_tokens 8"):
        cut_windows(10, 8, 8)


BATCHES = {
    "nothing": ([], 10, []),
    "longest first": ([16, 19, 18], 100, [[1, 2, 0]]),
    "full by padded tokens": ([4, 5, 3, 5], 10, [[1, 3], [0, 2]]),
    "little padding": ([8, 6, 5, 2, 1], 100, [[0, 1], [2], [3], [4]]),
    "too long goes alone": ([30, 2, 2], 10, [[0], [1, 2]]),
    "one at a time": ([2, 3], 0, [[1], [0]]),
}


@pytest.mark.parametrize(("lengths", "batch_tokens", "expected"), BATCHES.values(), ids=BATCHES)
def test_batches(lengths: list[int], batch_tokens: int, expected: list[list[int]]) -> None:
    assert batch_by_length(lengths, batch_tokens) == expected


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"scorer": "causal_lm"}, "needs difficulty.model"),
        ({"scorer": "rehearsal", "reference_model": "m"}, "reference_model needs scorer causal_lm"),
        ({"model": "m", "context_tokens": 64, "min_context": 64}, "must be below"),
        ({"model": "m", "context_tokens": 64, "min_context": 8, "batch_tokens": 32}, "must hold one window"),
        ({"model": "m", "segment_tokens": 8}, "greater than or equal to 16"),
        ({"model": "m", "threshold": 1.0}, "threshold"),
        ({"model": "m", "threshold_nats": "2"}, "valid number"),
    ],
)
def test_impossible_configs_say_why(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DifficultyConfig(**section)


# --- rehearsal --------------------------------------------------------------------------------------------------------

REHEARSAL = make_scorer(DifficultyConfig(scorer="rehearsal"))
TEXT = "The mill turns the corn; the corn turns into flour. 水車が回る。 Über naïve café!\n\nEnd"


def test_rehearsal_scores_equal_words_alike() -> None:
    assert REHEARSAL.rehearsal
    (scores,) = REHEARSAL.score([TEXT])
    data, ends = TEXT.encode(), scores.byte_ends.tolist()
    words = [data[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert {"The", " mill", " corn", ";", "水", "車", " Über", " naïve", "\n\n"} <= set(words)
    nats = dict(zip(words, scores.surprisal_nats.tolist(), strict=True))
    assert nats["The"] != nats[" the"] != nats[" corn"]
    assert [nats[word] for word in words] == scores.surprisal_nats.tolist()
    again = REHEARSAL.score(["x", "before " + TEXT])[1]
    np.testing.assert_array_equal(again.surprisal_nats[2:], scores.surprisal_nats[1:])


def test_rehearsal_scores_look_like_a_models() -> None:
    from pydoc_data.topics import topics

    (scores,) = REHEARSAL.score(["".join(topics.values())])
    nats, entropy = scores.surprisal_nats, scores.entropy_nats
    assert nats.dtype == entropy.dtype == np.float32
    assert 0 <= nats.min() <= nats.max() <= 20
    assert 1 < nats.mean() < 3.5
    assert 0.2 < (nats > 2).mean() < 0.5
    assert 0.5 < np.corrcoef(nats, entropy)[0, 1] < 1
    assert (nats > 8).mean() > 0.005, "no heavy tail"


@given(st.text())
def test_rehearsal_covers_any_text(text: str) -> None:
    (scores,) = REHEARSAL.score([text])
    assert (scores.byte_ends[-1] if len(scores.byte_ends) else 0) == len(text.encode())
    assert (np.diff(scores.byte_ends, prepend=0) > 0).all()
    assert np.isfinite(scores.surprisal_nats).all()


def test_rehearsal_is_fast() -> None:
    text = TEXT * 20_000
    start = time.perf_counter()
    (scores,) = REHEARSAL.score([text])
    assert len(scores.byte_ends) / (time.perf_counter() - start) > 300_000  # measured: millions, on an idle machine


# --- aligned to training tokens, excess loss --------------------------------------------------------------------------


class FixedScorer:
    """Scores every text as told: one token per entry."""

    name, rehearsal = "fixed", False

    def __init__(self, byte_ends: list[int], nats: list[float]) -> None:
        self.scores = TokenScores(np.array(byte_ends), np.array(nats, np.float32), np.array(nats, np.float32) / 2)

    def score(self, texts: Any) -> list[TokenScores]:
        return [self.scores for _ in texts]


def test_scores_move_to_the_training_tokens() -> None:
    scorer = FixedScorer([2, 4], [2.0, 4.0])
    [moved] = score_documents(scorer, ["abcd"], [np.array([1, 3, 4])])
    np.testing.assert_allclose(moved.surprisal_nats, [1, 3, 2])
    np.testing.assert_allclose(moved.entropy_nats, [0.5, 1.5, 1])
    assert moved.surprisal_nats.dtype == np.float32
    same, other = score_documents(scorer, ["abcd", "abcd"], [np.array([2, 4]), np.array([4])])
    np.testing.assert_array_equal(same.surprisal_nats, scorer.scores.surprisal_nats)
    np.testing.assert_array_equal(other.surprisal_nats, [6.0])


def test_excess_loss_is_what_the_reference_knows_better() -> None:
    scorer = ExcessLossScorer(FixedScorer([2, 4, 5], [4.0, 1.0, 3.0]), FixedScorer([4, 5], [4.0, 0.5]))
    (scores,) = scorer.score(["abcde"])
    np.testing.assert_allclose(scores.surprisal_nats, [2.0, 0.0, 2.5])
    np.testing.assert_allclose(scores.entropy_nats, [2.0, 0.5, 1.5])
    assert not scorer.rehearsal
    assert ExcessLossScorer(RehearsalScorer(), RehearsalScorer()).rehearsal


def test_descriptions_tell_what_decides_the_scores(tmp_path: Path) -> None:
    assert describe_scorer(DifficultyConfig(scorer="rehearsal"))["measure"] == "rehearsal"
    config = DifficultyConfig(model=str(tmp_path))
    described = describe_scorer(config)
    assert json.loads(json.dumps(described)) == described
    assert described["measure"] == "surprisal"
    (tmp_path / "config.json").write_text("{}")
    assert describe_scorer(config)["revision"] != described["revision"]
    excess = describe_scorer(DifficultyConfig(model="a/b", revision="a" * 40, reference_model=str(tmp_path)))
    revisions = (excess["revision"], excess["reference"]["revision"])
    assert (excess["measure"], *revisions) == ("excess_loss", "a" * 40, describe_scorer(config)["revision"])


# --- causal LM, on models made here -----------------------------------------------------------------------------------

CONTEXT = {"context_tokens": 32, "min_context": 8, "batch_tokens": 96, "device": "cpu"}
DOCUMENTS = [
    "",
    "a",
    "The cat sat on the mat. " * 6,
    "日本語です。",
    "x = [i for i in range(10)]\n" * 4,
    "Another one.",
]


def make_model(folder: Path, kind: str = "llama", vocab_size: int = 300, seed: int = 0) -> str:
    """A tiny model with random weights and a tokenizer of single bytes."""
    import torch
    import transformers

    torch.manual_seed(seed)
    size = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    if kind == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **heads))
    elif kind == "soft capped":
        config = transformers.Gemma2Config(**size, **heads, head_dim=16, final_logit_softcapping=0.05)
        model = transformers.Gemma2ForCausalLM(config)
    else:
        config = transformers.BertConfig(**size, num_attention_heads=2, max_position_embeddings=64)
        model = transformers.BertLMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)  # far from uniform predictions
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("tiny"))


def reference(folder: str, text: str, context_tokens: int, min_context: int) -> tuple[np.ndarray, np.ndarray]:
    """Surprisal and entropy token by token, the plain way: one forward pass per token, in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text).tolist()
    surprisal, entropy = [], []
    for window in cut_windows(len(ids), context_tokens, min_context):
        for at in range(window.score_from, window.end):
            with torch.inference_mode():
                read = torch.tensor([[tokenizer.end_of_text_id, *ids[window.start : at]]])
                logprobs = model(input_ids=read).logits[0, -1].log_softmax(-1)
            surprisal.append(-float(logprobs[ids[at]]))
            entropy.append(-float((logprobs.exp() * logprobs).sum()))
    return np.array(surprisal), np.array(entropy)


def test_causal_lm_agrees_with_the_plain_way(tiny_model: str) -> None:
    scorer = make_scorer(DifficultyConfig(model=tiny_model, **CONTEXT))
    assert scorer.model.chunked
    text = DOCUMENTS[2]
    (scores,) = scorer.score([text])
    surprisal, entropy = reference(tiny_model, text, 32, 8)
    assert surprisal.std() > 1
    np.testing.assert_allclose(scores.surprisal_nats, surprisal, atol=1e-4)
    np.testing.assert_allclose(scores.entropy_nats, entropy, atol=1e-4)
    assert scores.byte_ends.tolist() == list(range(1, len(text) + 1))


def test_scores_do_not_depend_on_company_order_or_chunks(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(DifficultyConfig(model=tiny_model, **CONTEXT))
    alone = [scorer.score([text])[0] for text in DOCUMENTS]
    together = scorer.score(DOCUMENTS)
    backwards = scorer.score(DOCUMENTS[::-1])[::-1]
    monkeypatch.setattr("difficulty.scorers.causal_model._MAX_CHUNK_ROWS", 3)
    seen = []
    write = CausalModel._write_logits
    monkeypatch.setattr(
        CausalModel, "_write_logits", lambda self, hidden, out: (seen.append(len(out)), write(self, hidden, out))
    )
    in_threes = scorer.score(DOCUMENTS)
    assert max(seen) == 3, "more than a chunk of the [tokens x vocabulary] matrix"
    other_batches = make_scorer(DifficultyConfig(model=tiny_model, **{**CONTEXT, "batch_tokens": 4096}))
    for others in (together, backwards, in_threes, other_batches.score(DOCUMENTS)):
        for one, other in zip(alone, others, strict=True):
            np.testing.assert_array_equal(one.byte_ends, other.byte_ends)
            np.testing.assert_allclose(one.surprisal_nats, other.surprisal_nats, atol=1e-4)
            np.testing.assert_allclose(one.entropy_nats, other.entropy_nats, atol=1e-4)


def test_a_model_with_more_than_a_linear_head_is_run_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(tmp_path, "soft capped")
    scorer = make_scorer(DifficultyConfig(model=folder, **CONTEXT))
    assert isinstance(scorer, CausalLMScorer)
    assert not scorer.model.chunked
    assert "more to its logits than a linear head" in caplog.text
    assert {len(rows) for rows in scorer.batches([np.arange(40), np.arange(40)])} == {1}
    (scores,) = scorer.score([DOCUMENTS[2]])
    surprisal, entropy = reference(folder, DOCUMENTS[2], 32, 8)
    np.testing.assert_allclose(scores.surprisal_nats, surprisal, atol=1e-4)
    np.testing.assert_allclose(scores.entropy_nats, entropy, atol=1e-4)


def test_impossible_logits_have_no_part_in_the_entropy() -> None:
    import torch

    from difficulty.scorers.causal_model import nats_of_logits

    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf], [0.0, -200.0, -torch.inf, -torch.inf]])
    surprisal, entropy = nats_of_logits(logits, torch.tensor([0, 1]), torch.empty_like(logits))
    np.testing.assert_allclose(surprisal, [np.log(2), 200.0], rtol=1e-6)
    np.testing.assert_allclose(entropy, [np.log(2), 0.0], atol=1e-6)


def test_models_that_cannot_score_are_refused(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks_ahead = tmp_path / "bert"
    looks_ahead.mkdir()
    with pytest.raises(MillError, match="no causal language model: it looks ahead"):
        make_scorer(DifficultyConfig(model=make_model(looks_ahead, "bert"), **CONTEXT))
    too_small = tmp_path / "small"
    too_small.mkdir()
    with pytest.raises(MillError, match="has 257 ids, its embeddings 200"):
        make_scorer(DifficultyConfig(model=make_model(too_small, vocab_size=200), **CONTEXT))
    with pytest.raises(RequestError, match=r"context_tokens: 65: the model .* reads at most 64"):
        make_scorer(DifficultyConfig(model=tiny_model, context_tokens=65, min_context=8))
    (tmp_path / "small" / "model.safetensors").unlink()
    with pytest.raises(MillError, match="can't be loaded as a causal language model"):
        make_scorer(DifficultyConfig(model=str(too_small), **CONTEXT))
    with pytest.raises(MillError, match="no such folder"):
        make_scorer(DifficultyConfig(model=str(tmp_path / "missing"), **CONTEXT))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RequestError, match=r"difficulty.device: 'cuda'"):
        make_scorer(DifficultyConfig(model=tiny_model, **{**CONTEXT, "device": "cuda"}))


def test_excess_loss_of_two_models(tiny_model: str, tmp_path: Path) -> None:
    other = make_model(tmp_path, seed=1)
    text = DOCUMENTS[4]
    (ours,) = make_scorer(DifficultyConfig(model=tiny_model, **CONTEXT)).score([text])
    (theirs,) = make_scorer(DifficultyConfig(model=other, **CONTEXT)).score([text])
    (excess,) = make_scorer(DifficultyConfig(model=tiny_model, reference_model=other, **CONTEXT)).score([text])
    expected = np.maximum(ours.surprisal_nats - theirs.surprisal_nats, 0)
    assert 0.2 < (expected > 0).mean() < 0.8
    np.testing.assert_allclose(excess.surprisal_nats, expected, atol=1e-4)


@pytest.mark.model
def test_the_small_model_finds_the_surprising_word(small_model: str) -> None:
    scorer = make_scorer(DifficultyConfig(model=small_model, device="cpu"))
    text = "The capital of France is Paris, and the capital of Italy is umbrella."
    tokenizer = load_tokenizer(small_model)
    ids = tokenizer.encode(text)
    [scores] = score_documents(scorer, [text], [tokenizer.byte_ends(ids)])
    nats = {tokenizer.decode([token]): s for token, s in zip(ids, scores.surprisal_nats, strict=True)}
    assert nats[" umbrella"] > 8 > 2 > nats[" Paris"]
    control = scorer.score(["<|im_end|>\x04<think>"])[0]
    assert control.byte_ends[-1] == len("<|im_end|>\x04<think>")


def test_no_scorer_finds_nothing_hard() -> None:
    config = DifficultyConfig(scorer="none")
    scorer = make_scorer(config)
    assert not scorer.rehearsal and describe_scorer(config) == {"scorer": "none", "measure": "none"}
    (scores,) = score_documents(scorer, ["ab cd"], [np.array([2, 5])])
    assert scores.surprisal_nats.tolist() == scores.entropy_nats.tolist() == [0.0, 0.0]
    (empty,) = score_documents(scorer, [""], [np.empty(0, np.int64)])
    assert not len(empty.surprisal_nats)
    assert not scorer.nats_after(["", "before"], "ab cd", 0, prefix_tokens=8).nats.any()
