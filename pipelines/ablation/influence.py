"""The influence check: does the value of a trace foretell what a step of training on it does? Imports torch.

    student of an arm, at its end ─► one step on a segment with its trace, less one on the segment alone
                                      └► what that takes from the loss on held-out text, against the trace's gain

Each trace is tried from the same weights, by one step of plain gradient descent on the sum of its tokens' loss, since
every token of a batch weighs the same. Gains are those of selection: beyond controls, kept and rejected traces alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.ablation.config import AblationConfig
from pipelines.ablation.heldout_text import held_out, windows
from pipelines.ablation.result import Influence
from pipelines.ablation.student import device_of, logits_of, new_student, read_texts, within_documents
from pipelines.ablation.training import read_checkpoint
from pipelines.ablation.verdict import stretched
from sharding import storage
from sharding.beam.part_join import Parts, groups_of, joined_documents
from sharding.errors import MillError, RequestError
from sharding.hashing import Purpose, hashed, seed_of
from sharding.models.tokenizer import load_tokenizer
from sharding.packing.config import config_of, layout_of
from sharding.packing.laying_out import encode_delimiters, segment_tokens
from sharding.packing.layout import Delimiters, lay_out
from sharding.records.families import KEPT, REJECTED, SEGMENTS
from sharding.records.rows import Item
from sharding.records.types import Candidate, ScoredSegment
from sharding.shards.rows import LossMask, loss_mask
from sharding.storage import manifest

RESAMPLES = 1_000
_MIN_DOCUMENTS = 8


def influence_of(arm: str, output: str, scores: str, baseline: str, folder: str, config: AblationConfig) -> Influence:
    """The influence check of one arm.

    Args:
        arm, output: whose traces are tried.
        scores: the scored output.
        baseline: a packed output of it, whose validation split is the reference text.
        folder: of the training run of the arm's student, whose checkpoint is the start.
        config: the `ablation` section, with `influence`.

    Raises:
        RequestError: too few traces have a gain.
        MillError: the checkpoint isn't there.
    """
    assert config.influence is not None
    packed = manifest.require(output, "pack")
    size = int(packed.config["pack"]["sequence_length"])
    saved = read_checkpoint(folder)
    if saved is None:
        raise MillError(f"{folder} has no checkpoint to try traces from: remove the folder, and it is trained again")
    tokenizer = load_tokenizer(packed.config["tokenizer"])
    model = new_student(config.model, max(int(packed.facts["vocab_size"]), tokenizer.vocab_size), size, 0)
    model.load_state_dict(saved["model"])
    model.to(device_of(config)).eval()
    traces = _traces(output, config.influence.traces)
    reference, _ = windows(held_out(scores, baseline, None, config.influence.reference_tokens), size)
    config_packed = config_of(packed)
    form = _Form(
        layout_of(packed), encode_delimiters(config_packed, tokenizer), size, tokenizer.dtype, config_packed.loss_mask
    )
    tried = list(_effects(model, _segments(scores, traces), reference, form, config.influence.learning_rate))
    documents = [candidate.doc_id for candidate, _ in tried]
    gains = np.array([(candidate.gain_nats or 0.0) - (candidate.control_nats or 0.0) for candidate, _ in tried])
    effects = np.array([effect for _, effect in tried])
    low, high = correlation_interval(gains, effects, documents)
    return Influence(
        arm=arm,
        traces=len(tried),
        documents=len(set(documents)),
        spearman=spearman(gains, effects),
        low=low,
        high=high,
        null=null_range(gains, effects),
    )


@dataclass(frozen=True)
class _Form:
    """How a segment and its trace are laid out and trained on."""

    layout: str
    delimiters: Delimiters
    size: int
    dtype: np.dtype
    loss_mask: LossMask


def _traces(output: str, number: int) -> list[Candidate]:
    """Traces with a gain, by a hash of their keys; no more than one of a segment."""
    selected = manifest.require(output, "select")
    found: dict[str, Candidate] = {}
    for family in (KEPT, REJECTED):
        for url in manifest.file_urls(output, selected, family.name):
            for candidate in storage.read_records(url, Candidate):
                if candidate.gain_nats is not None and len(candidate.input_ids):
                    before = found.setdefault(candidate.segment_id, candidate)
                    found[candidate.segment_id] = min(before, candidate, key=_rank)
    if len(found) < _MIN_DOCUMENTS:
        raise RequestError(
            f"ablation.influence: {len(found)} segments of {output} have a trace with a gain, {_MIN_DOCUMENTS} are "
            "needed: set select.value to continuation_gain, or leave the check out"
        )
    return sorted(found.values(), key=_rank)[:number]


def _rank(candidate: Candidate) -> tuple[bytes, str, int]:
    return hashed(Purpose.HELD_OUT, candidate.key), candidate.segment_id, candidate.sample


def _segments(scores: str, traces: Sequence[Candidate]) -> Iterator[tuple[Candidate, ScoredSegment]]:
    """Each trace with its segment, in the order of documents."""
    wanted: dict[str, dict[int, Candidate]] = {}
    for trace in traces:
        wanted.setdefault(trace.doc_id, {})[trace.segment_index] = trace
    scored = manifest.require(scores, "score")
    for group in groups_of(Parts.of(scores, scored, SEGMENTS, ("input_ids", "source"))):
        for joined in joined_documents(group):
            of_document: Mapping[int, Candidate] = wanted.get(joined.scored.doc_id, {})
            for segment in joined.scored.segments() if of_document else ():
                if segment.segment_index in of_document:
                    yield of_document[segment.segment_index], segment


def _effects(
    model: Any,
    pairs: Iterator[tuple[Candidate, ScoredSegment]],
    reference: Sequence[np.ndarray],
    form: _Form,
    rate: float,
) -> Iterator[tuple[Candidate, float]]:
    """What a step on each trace takes from the mean loss on the reference text, beyond one on its segment alone."""
    start = {name: weights.detach().clone() for name, weights in model.state_dict().items()}
    for candidate, segment in pairs:
        losses = []
        for thoughts in ([candidate], []):
            model.load_state_dict(start)
            laid_out = [segment_tokens(segment, thoughts)]
            items, _ = lay_out(segment.doc_id, laid_out, form.layout, form.delimiters, form.size, form.dtype)
            _step(model, items, form.loss_mask, rate / form.size)
            losses.append(_loss(model, reference))
        yield candidate, losses[1] - losses[0]
    model.load_state_dict(start)


def _step(model: Any, items: Sequence[Item], policy: LossMask, rate: float) -> None:
    for item in items:
        if len(item.input_ids) < 2:
            continue
        ids = torch.from_numpy(item.input_ids.astype(np.int64))[None]
        logits = logits_of(
            model, ids, torch.arange(ids.shape[1])[None], within_documents([[ids.shape[1]]], ids.shape[1])
        )
        counted = loss_mask(item.token_type, policy)[1:]
        targets = torch.where(torch.from_numpy(counted), ids[0, 1:], -100).to(logits.device)
        torch.nn.functional.cross_entropy(logits[0, :-1].float(), targets, reduction="sum").backward()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.grad is not None:
                weights -= rate * weights.grad
                weights.grad = None


def _loss(model: Any, reference: Sequence[np.ndarray]) -> float:
    return float(np.concatenate([nats for nats, _ in read_texts(model, reference)]).mean(dtype=np.float64))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; 0 where one of them is the same everywhere."""
    from scipy.stats import rankdata

    ranks = [rankdata(one) for one in (first, second)]
    deviations = [one - one.mean() for one in ranks]
    size = float(np.sqrt((deviations[0] ** 2).sum() * (deviations[1] ** 2).sum()))
    return float(deviations[0] @ deviations[1]) / size if size else 0.0


def correlation_interval(
    first: np.ndarray, second: np.ndarray, documents: Sequence[str]
) -> tuple[float, float] | tuple[None, None]:
    """A 95% interval of the rank correlation: a bootstrap over documents, whose traces hang together.

    Its deviations are stretched for few documents, as those of `pipelines.ablation.verdict`.

    Args:
        first, second: (n,) float64.
        documents: of each pair.

    Returns:
        Its ends; None of fewer than 8 documents.
    """
    groups: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        groups.setdefault(document, []).append(place)
    if len(groups) < _MIN_DOCUMENTS:
        return None, None
    members = [np.array(places) for places in groups.values()]
    rng = np.random.default_rng(seed_of("influence"))
    drawn = []
    for chosen in rng.integers(0, len(members), (RESAMPLES, len(members))):
        places = np.concatenate([members[group] for group in chosen])
        drawn.append(spearman(first[places], second[places]))
    found = spearman(first, second)
    ends = found + (np.quantile(drawn, [0.025, 0.975]) - found) * stretched(len(members))
    low, high = np.clip(ends, -1, 1).tolist()
    return low, high


def null_range(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95% range of the rank correlation where the first is dealt out anew: the truth is 0."""
    rng = np.random.default_rng(seed_of("influence null"))
    drawn = [spearman(rng.permutation(first), second) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return low, high
