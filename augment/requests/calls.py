"""The calls of a recipe as generations: prompts, keys and ledger rows. What `planner` is to a request, for its steps.

A call's key begins with that of the run it belongs to and covers its step, the rows it was made from, and all that
decides its text. So a run that is walked again finds every call that has ended, and a changed step is asked anew, with
what follows from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from augment.engines.config import SamplingConfig
from augment.engines.protocol import Generation, GenerationRequest
from augment.recipes.protocol import Call, RecipeRequest
from augment.recipes.walk import End
from augment.requests.closing import closed_of, make_closing
from augment.requests.keys import make_request, request_key
from augment.requests.planner import TracePlanner
from sharding.hashing import fingerprint
from sharding.records.types import LedgerRow, Request, sample_key


@dataclass(frozen=True, eq=False)
class PlannedCall:
    """A call ready for its engine.

    Attributes:
        key: of its ledger row.
        generation: what to ask.
        prompt_version: of its template.
    """

    call: Call
    key: str
    generation: GenerationRequest
    prompt_version: str


def sampling_of(call: Call, sampling: SamplingConfig) -> SamplingConfig:
    """The section of the config with what the call says otherwise."""
    changed = {name: value for name in ("temperature", "top_p") if (value := getattr(call, name)) is not None}
    return dataclasses.replace(sampling, **changed) if changed else sampling


def call_key(request: Request, sample: int, call: Call, prompt_key: str) -> str:
    """The ledger key of a call.

    Args:
        request, sample: the run it belongs to.
        prompt_key: `request_key` of the call's own prompt, model and sampling.
    """
    run = sample_key(request.request_key, sample)
    told = json.dumps([run, call.step, call.number, call.made_from, prompt_key])
    return f"{run}/{call.step.replace(' ', '-')}-{fingerprint([told], 8)}"


class RecipePlanner:
    """Makes generations and rows of the calls of recipes; what it knows it has from the planner of requests."""

    def __init__(self, planner: TracePlanner) -> None:
        self._planner = planner

    def recipe(self, tier: str) -> RecipeRequest:
        """The recipe of a tier that has one."""
        found = self._planner.tier(tier).recipe
        assert found is not None
        return found

    def prompt_version(self, request: Request) -> str:
        """The version of the prompt that a request names: the tier's."""
        return self._planner.builder(request.model, request.prompt).template.version

    def kind(self, request: Request) -> str:
        """As `TracePlanner.kind`."""
        return self._planner.kind(request)

    def planned_call(self, request: Request, sample: int, call: Call, expected_tokens: float) -> PlannedCall:
        """A call of a run with its prompt and its key.

        Args:
            expected_tokens: that the run has still ahead.

        Raises:
            NoRoom: the prompt leaves no room for the call.
            UnencodableText: the generator's tokenizer can't spell what the prompt is to hold.
        """
        planner = self._planner
        builder = planner.builder(call.model, call.prompt, tuple(call.slots))
        text = request.text if call.about is None else call.about
        prompt = builder.build(text, request.context, request.focus, max_tokens=call.max_tokens, fillings=call.slots)
        thinks = call.wants == "thought"
        closing = make_closing(planner.closing, call.max_tokens, builder.encode(planner.closing.phrase))
        asked: dict[str, Any] = {
            "sampling": sampling_of(call, planner.sampling),
            "max_tokens": call.max_tokens,
            "min_tokens": min(planner.tier(request.tier).min_tokens, call.max_tokens) if thinks else 0,
            "stop": builder.stop if thinks else (),
            "closing": closing if thinks else None,
        }
        key = call_key(request, sample, call, request_key(planner.decides(call.model), prompt.token_ids, **asked))
        # Of no kind: it goes by what its run has ahead, not by its own length.
        group = f"{builder.template.version}/{request.doc_id}"
        generation = make_request(key, prompt.token_ids, expected_tokens=expected_tokens, prefix_group=group, **asked)
        return PlannedCall(call, key, generation, builder.template.version)

    def call_row(
        self,
        request: Request,
        sample: int,
        planned: PlannedCall,
        generation: Generation,
        *,
        wall_s: float,
        finished_at: float,
    ) -> LedgerRow:
        """The row of a finished call."""
        call = planned.call
        model = self._planner.models[call.model]
        return LedgerRow(
            key=planned.key,
            request_key=request.request_key,
            sample=sample,
            segment_id=request.segment_id,
            tier=request.tier,
            model=generation.model or model.name,
            revision=self._planner.decides(call.model)["revision"],
            engine=model.engine,
            engine_version=generation.engine_version,
            prompt=call.prompt,
            prompt_version=f"{planned.prompt_version}@{call.step}",
            text=generation.text,
            thought_tokens=generation.paid_tokens,
            token_ids=generation.token_ids,
            sum_logprobs=generation.sum_logprobs,
            finish_reason=generation.finish_reason,
            closed=closed_of(generation),
            prompt_tokens=len(planned.generation.prompt_token_ids),
            wall_s=wall_s,
            finished_at=finished_at,
            step=call.step,
            made_from=list(call.made_from),
            wants=call.wants,
            continued=generation.continued,
        )


def outcome_row(request: Request, sample: int, end: End, calls: Sequence[LedgerRow], prompt_version: str) -> LedgerRow:
    """The row of what came of a run, from the rows of its calls; the same whenever it is made from the same.

    It was paid with the calls, so it has the tokens of all of them. Of a thought that the recipe wrote itself, the
    last call says how it ended.
    """
    last = max(calls, key=lambda row: (row.finished_at, row.key))
    of = last if end.made is None else next(row for row in calls if row.key == end.made.key)
    return LedgerRow(
        key=sample_key(request.request_key, sample),
        request_key=request.request_key,
        sample=sample,
        segment_id=request.segment_id,
        tier=request.tier,
        model=of.model,
        revision=of.revision,
        engine=of.engine,
        engine_version=of.engine_version,
        prompt=request.prompt,
        prompt_version=prompt_version,
        text=end.text,
        thought_tokens=sum(row.thought_tokens for row in calls),
        token_ids=of.token_ids[:0],
        sum_logprobs=None,
        finish_reason=of.finish_reason,
        closed=of.closed,
        prompt_tokens=sum(row.prompt_tokens for row in calls),
        wall_s=sum(row.wall_s for row in calls),
        finished_at=last.finished_at,
        made_from=sorted(row.key for row in calls),
        continued=sum(row.continued for row in calls),
    )
