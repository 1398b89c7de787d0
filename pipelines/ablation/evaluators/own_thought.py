"""Own thought: how likely a student finds held-out text after a thought of its own, where the layout puts thoughts.

    text before the place, opening ─► the student writes its thought ─► closing, text behind the place: ln p

The places are those of the requests of an arm with thoughts, for documents that no student was trained on: the same for
every arm. Scores, mean ln p of a token behind the places, in nats: `after` the own thought, `silent` without one, and
`either`, the better of both at each place, as of a student that may choose. `chosen` is how often that is the thought.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.ablation.evaluators import Setting, check_layout
from pipelines.ablation.generation import generate_ids, nats_behind
from pipelines.ablation.heldout_text import HeldOut, held_out
from sharding import storage
from sharding.errors import RequestError
from sharding.hashing import Purpose, hashed
from sharding.models.tokenizer import TextTokenizer, load_tokenizer
from sharding.packing.config import config_of, layout_of
from sharding.packing.laying_out import encode_delimiters
from sharding.records.types import Request
from sharding.storage import manifest


class OwnThought:
    """Lets a student think and read on.

    Args:
        setting: where the held-out text and the places are.
        places: so many places at most.
        max_thought_tokens: a thought that is longer is closed there.
        behind_tokens: text behind a place that is read.
        temperature: of the thought; 0: the most likely token each time.
        seed: of what is sampled.
        max_tokens: tokens of held-out text in which places are looked for.

    Raises:
        RequestError: no arm has thoughts, the layout puts them behind the text, or no held-out text has a place.
    """

    def __init__(
        self,
        setting: Setting,
        places: int = 128,
        max_thought_tokens: int = 128,
        behind_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        max_tokens: int = 131_072,
    ) -> None:
        if setting.places is None:
            raise RequestError("ablation.evaluators: own_thought needs an arm with thoughts, to know where they stand")
        packed = manifest.require(setting.places, "pack")
        layout = layout_of(packed)
        check_layout("own_thought", layout)
        config = config_of(packed)
        delimiters = encode_delimiters(config, load_tokenizer(packed.config["tokenizer"]))
        self._open, self._close = delimiters.thought_open, delimiters.thought_close
        room = config.sequence_length - behind_tokens - len(self._open) - len(self._close)
        self._max_thought_tokens = min(max_thought_tokens, room // 2)
        self._temperature, self._seed = temperature, seed
        documents = {one.doc_id: one for one in held_out(setting.scores, setting.baseline, None, max_tokens)}
        found = _places(setting.places, layout, documents)
        found.sort(key=lambda place: (hashed(Purpose.HELD_OUT, f"{place[0]}#{place[1]}"), place))
        self._before: list[np.ndarray] = []
        self._behind: list[np.ndarray] = []
        for doc_id, place in found[:places]:
            ids = documents[doc_id].input_ids
            before, behind = ids[max(0, place - (room - self._max_thought_tokens)) : place], ids[place:]
            self._before.append(before)
            self._behind.append(behind[:behind_tokens])
        if not self._before:
            raise RequestError(
                "ablation.evaluators: own_thought has no place: no held-out document has a thought with text before "
                "and behind it; hold out more (pack.validation_fraction), or leave the evaluator out"
            )

    def evaluate(self, model: Any, tokenizer: TextTokenizer) -> dict[str, float]:
        prompts = [np.concatenate([before, self._open]) for before in self._before]
        thoughts = generate_ids(
            model,
            prompts,
            max_tokens=self._max_thought_tokens,
            stop=[self._close] if len(self._close) else [],
            temperature=self._temperature,
            seed=self._seed,
            vocab_size=tokenizer.vocab_size,
        )
        thought = [np.concatenate(parts) for parts in zip(prompts, thoughts, strict=True)]
        closed = [np.concatenate([one, self._close]) for one in thought]
        after = _totals(nats_behind(model, closed, self._behind))
        silent = _totals(nats_behind(model, self._before, self._behind))
        tokens = sum(map(len, self._behind))
        return {
            "after": -float(after.sum()) / tokens,
            "silent": -float(silent.sum()) / tokens,
            "either": -float(np.minimum(after, silent).sum()) / tokens,
            "chosen": float((after < silent).mean()),
        }


def _places(output: str, layout: str, documents: dict[str, HeldOut]) -> list[tuple[str, int]]:
    """(document, tokens of its source before the thought), with text before and behind."""
    found: list[tuple[str, int]] = []
    augmented = manifest.require(output, "augment")
    for url in manifest.file_urls(output, augmented, "requests"):
        for request in storage.read_records(url, Request, columns=("doc_id", "segment_index", "shown_tokens")):
            document = documents.get(request.doc_id)
            if document is None:
                continue
            starts = [*document.segment_starts.tolist(), len(document.input_ids)]
            start, end = starts[request.segment_index], starts[request.segment_index + 1]
            within = start + request.shown_tokens
            place = {"before_segment": start, "after_segment": end, "at_hard_span": within}.get(layout, within)
            if 0 < place < len(document.input_ids):
                found.append((request.doc_id, place))
    return found


def _totals(nats: list[np.ndarray]) -> np.ndarray:
    return np.array([float(one.sum(dtype=np.float64)) for one in nats])
