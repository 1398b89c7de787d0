"""From segments to requests and from generations to ledger rows: the augment stage without Beam.

A `TracePlanner` travels to every worker as the few values it is made of; tokenizers and prompt builders are loaded
where they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from augment.engines.config import ModelConfig, SamplingConfig
from augment.engines.protocol import Closing, Generation, GenerationRequest
from augment.recipes.protocol import LEAST_TOKENS, RecipeRequest
from augment.requests.closing import ClosingConfig, closed_of, make_closing
from augment.requests.contexts import Contexts, NoContext
from augment.requests.dialects import Dialect
from augment.requests.keys import length_kind, make_request, request_key, what_decides_text
from augment.requests.prompts import PromptBuilder, load_template, prompt_builder
from augment.requests.recipes import recipe_key, step_models, step_prompts
from augment.requests.tiers import RETRIEVED, ContractionRequest, IndexRequest, SegmentChoices, TierRequest
from sharding.models.store import is_commit
from sharding.models.tokenizer import UnencodableText, load_tokenizer
from sharding.records.types import LedgerRow, Quarantined, Request, ScoredSegment, sample_key

CONTEXT_TOKENS = 2048
"""How much of the document before a segment its prompt may show, in training tokens (TPT, arXiv 2509.20186)."""

EXCERPT_CHARACTERS = 400

_PLAIN = Contexts()
"""Nothing but the document itself."""


@dataclass(frozen=True, kw_only=True)
class TracePlanner:
    """Makes requests for segments.

    Attributes:
        tiers: what each tier asks for, in the order of the config; None for the tier that skips.
        models: the models that some tier uses, by their name in the config.
        sampling, closing: the sections of the config.
        tokenizer: name of the training tokenizer.
        contraction: how documents are contracted; None where no tier shows a contraction.
        index: what passages are found in; None where no tier shows any.
    """

    tiers: tuple[TierRequest | None, ...]
    models: dict[str, ModelConfig]
    sampling: SamplingConfig
    closing: ClosingConfig
    tokenizer: str
    contraction: ContractionRequest | None = None
    index: IndexRequest | None = None
    _builders: dict[tuple[str, str, tuple[str, ...]], PromptBuilder] = field(
        default_factory=dict, init=False, compare=False
    )
    """By model, prompt and slots; made where they are used, as a prompt costs less than its builder."""
    _closings: dict[str, Closing | None] = field(default_factory=dict, init=False, compare=False)
    """By tier."""
    _decides: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        for name in self.models:
            self.decides(name)
        return {**self.__dict__, "_builders": {}, "_closings": {}}

    def with_tiers(self, *tiers: TierRequest | None) -> TracePlanner:
        """The same with other tiers, which show the document alone; it knows of the models what this one knows."""
        made = dataclasses.replace(self, tiers=tiers, contraction=None, index=None)
        made._decides.update(self._decides)
        return made

    def decides(self, name: str) -> dict[str, Any]:
        """`what_decides_text` of a model, asked once and carried to every worker: a key is the same on all of them.

        Raises:
            MillError: the model's revision can't be found out.
        """
        if name not in self._decides:
            self._decides[name] = what_decides_text(self.models[name])
        return self._decides[name]

    def model(self, name: str) -> ModelConfig:
        """A model as it is to be loaded: at the commit that its keys name, wherever its branch moves during the run."""
        model, revision = self.models[name], self.decides(name)["revision"]
        if not is_commit(revision):
            return model
        arguments = model.engine_args
        if model.engine == "vllm" and "tokenizer" in arguments:  # which has commits of its own
            arguments = {"tokenizer_revision": model.revision, **arguments}
        return dataclasses.replace(model, revision=revision, engine_args=arguments)

    def requests(
        self,
        segments: Sequence[ScoredSegment],
        choices: SegmentChoices,
        contexts: Contexts = _PLAIN,
    ) -> Iterator[Request | Quarantined]:
        """The requests of one document's segments, in order; none for segments that are skipped.

        A segment that the generator's tokenizer can't spell, or that has no contraction where its tier shows one, is
        quarantined; it stays in the corpus, without thoughts.
        A prompt shows nothing of what its segment holds back: not in the text, and not among the hard spans.

        Args:
            segments: all segments of the document, in order.
            choices: what was decided of each of them.
            contexts: what there is to show of the document beside them.
        """
        tokenizer = load_tokenizer(self.tokenizer)
        before = np.empty(0, tokenizer.dtype)
        for segment, chosen in zip(segments, choices.tiers(segments), strict=True):
            tier = self.tiers[chosen]
            shown_tokens = 0 if tier is None else choices.shown_tokens(segment, tier.tier)
            if tier is not None and shown_tokens:
                shown = first_tokens(segment, shown_tokens)
                text = tokenizer.decode(shown.input_ids)
                builder = self._builder(tier)
                names_spans = builder.uses("focus") or tier.recipe is not None or RETRIEVED in tier.context
                focus = choices.focus(shown, text) if names_spans else ()
                # The calls of a recipe have caps of their own: here the prompt has to be one at all.
                cap = tier.max_tokens if tier.recipe is None else LEAST_TOKENS
                try:
                    context = contexts.of(tier, segment, tokenizer.decode_bytes(before).decode(errors="ignore"), focus)
                    prompt = builder.build(text, context, focus, max_tokens=cap)
                except (UnencodableText, NoContext) as error:
                    yield Quarantined(
                        stage="augment",
                        origin=segment.segment_id,
                        doc_id=segment.doc_id,
                        reason=error.reason,
                        detail=str(error),
                        excerpt=text[:EXCERPT_CHARACTERS],
                    )
                else:
                    request = self._request(tier, segment, shown_tokens, prompt.token_ids, builder)
                    yield (
                        request if tier.recipe is None else self._of_recipe(tier.recipe, request, text, context, focus)
                    )
            before = np.concatenate([before, segment.input_ids])[-CONTEXT_TOKENS:]

    def _request(
        self, tier: TierRequest, segment: ScoredSegment, shown_tokens: int, prompt: np.ndarray, builder: PromptBuilder
    ) -> Request:
        key = request_key(
            self.decides(tier.model),
            prompt,
            sampling=self.sampling,
            max_tokens=tier.max_tokens,
            min_tokens=tier.min_tokens,
            stop=builder.stop,
            closing=self._closing(tier),
        )
        return Request(
            doc_id=segment.doc_id,
            segment_index=segment.segment_index,
            tier=tier.tier,
            model=tier.model,
            prompt=tier.prompt,
            request_key=key,
            samples=tier.samples,
            max_tokens=tier.max_tokens,
            expected_tokens=tier.expected_tokens,
            prompt_tokens=len(prompt),
            prompt_token_ids=prompt,
            shown_tokens=shown_tokens,
        )

    def _of_recipe(
        self, recipe: RecipeRequest, request: Request, text: str, context: str, focus: Sequence[str]
    ) -> Request:
        """The request of a tier with a recipe: with what its prompts may show, and a key for all that."""
        models = {name: self.decides(name) for name in step_models(recipe)}
        key = recipe_key(recipe, request.request_key, (text, context, *focus), models)
        return msgspec.structs.replace(request, request_key=key, text=text, context=context, focus=list(focus))

    def kind(self, request: Request) -> str:
        """What the lengths of its generations are known by, those of a recipe by that of whole runs."""
        version = self._builder(self.tier(request.tier)).template.version
        return length_kind(request.tier, self.models[request.model].name, version)

    def generation_request(self, request: Request, key: str) -> GenerationRequest:
        """The generation of one sample of a request, under its ledger key."""
        tier = self.tier(request.tier)
        builder = self._builder(tier)
        return make_request(
            key,
            request.prompt_token_ids,
            sampling=self.sampling,
            max_tokens=tier.max_tokens,
            min_tokens=tier.min_tokens,
            expected_tokens=tier.expected_tokens,
            kind=self.kind(request),
            prefix_group=f"{builder.template.version}/{request.doc_id}",
            stop=builder.stop,
            closing=self._closing(tier),
        )

    def ledger_row(
        self, request: Request, sample: int, generation: Generation, *, wall_s: float, finished_at: float
    ) -> LedgerRow:
        """The row of a finished generation."""
        model = self.models[request.model]
        return LedgerRow(
            key=sample_key(request.request_key, sample),
            request_key=request.request_key,
            sample=sample,
            segment_id=request.segment_id,
            tier=request.tier,
            model=generation.model or model.name,
            revision=self.decides(request.model)["revision"],
            engine=model.engine,
            engine_version=generation.engine_version,
            prompt=request.prompt,
            prompt_version=self._builder(self.tier(request.tier)).template.version,
            text=generation.text,
            thought_tokens=generation.paid_tokens,
            token_ids=generation.token_ids,
            sum_logprobs=generation.sum_logprobs,
            finish_reason=generation.finish_reason,
            closed=closed_of(generation),
            prompt_tokens=request.prompt_tokens,
            wall_s=wall_s,
            finished_at=finished_at,
            continued=generation.continued,
        )

    def tier(self, name: str) -> TierRequest:
        """What the tier of this name asks for."""
        return next(tier for tier in self.tiers if tier is not None and tier.tier == name)

    def builder(self, model: str, prompt: str, more_slots: tuple[str, ...] = ()) -> PromptBuilder:
        """The builder of a prompt for a model, by its name in the config.

        Raises:
            RequestError: there is no such template.
            MillError: the model's tokenizer can't be loaded.
        """
        key = (model, prompt, more_slots)
        if key not in self._builders:
            self._builders[key] = prompt_builder(
                self.model(model),
                prompt,
                load_tokenizer(self.tokenizer),
                max_context_tokens=CONTEXT_TOKENS,
                more_slots=more_slots,
            )
        return self._builders[key]

    def _builder(self, tier: TierRequest) -> PromptBuilder:
        return self.builder(tier.model, tier.prompt)

    def _closing(self, tier: TierRequest) -> Closing | None:
        if tier.tier not in self._closings:
            phrase = self._builder(tier).encode(self.closing.phrase)
            self._closings[tier.tier] = make_closing(self.closing, tier.max_tokens, phrase)
        return self._closings[tier.tier]

    # --- for the manifest ---------------------------------------------------------------------------------------------

    def prompt_versions(self) -> dict[str, str]:
        """Name of each prompt in use → its version."""
        thinking = [tier for tier in self.tiers if tier is not None]
        found = {tier.prompt: load_template(tier.prompt).version for tier in thinking}
        of_steps = {
            prompt: load_template(prompt).version
            for tier in thinking
            if tier.recipe is not None
            for prompt in step_prompts(tier.recipe).values()
        }
        if self.contraction is not None:
            of_steps[self.contraction.prompt] = load_template(self.contraction.prompt).version
        return of_steps | found

    def describe(self) -> dict[str, dict[str, Any]]:
        """The models in use, for manifest and card."""
        return {
            name: {"name": model.name, "revision": self.decides(name)["revision"], "engine": model.engine}
            for name, model in self.models.items()
        }

    def warnings(self) -> list[str]:
        """What the owner of the run should know of its generators."""
        return self.unknown_dialects() + [
            f"{name} has no thinking mode; more tokens don't replace it"
            for name, dialect in self._dialects()
            if dialect.has_thinking_mode is False and not dialect.unknown_marks
        ]

    def unknown_dialects(self) -> list[str]:
        """The generators that mark their thinking in a way that isn't known, to be said before they are paid."""
        return [
            f"{name}: how it marks its thinking isn't known ({dialect.unknown_marks} speak of it), so its thoughts "
            "can't be told from its answers; set `thinking: false` if it can do without, or add its marks to "
            "augment/marks.py"
            for name, dialect in self._dialects()
            if dialect.unknown_marks
        ]

    def _dialects(self) -> Iterator[tuple[str, Dialect]]:
        for tier in {tier.model: tier for tier in self.tiers if tier is not None}.values():
            yield f"model {tier.model} ({self.models[tier.model].name})", self._builder(tier).dialect


def first_tokens(segment: ScoredSegment, num_tokens: int) -> ScoredSegment:
    """A segment as if it ended after its first `num_tokens` tokens; its difficulty stays that of the whole."""
    if num_tokens >= len(segment.input_ids):
        return segment
    per_token = ("input_ids", "surprisal_nats", "entropy_nats", "memory_nats")
    return msgspec.structs.replace(segment, **{name: getattr(segment, name)[:num_tokens] for name in per_token})
