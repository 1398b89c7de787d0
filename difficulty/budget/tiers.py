"""What can be bought and what it costs: tiers, prices and the budget's config section.

`difficulty.budget` distributes the budget declared here over the segments of a `DifficultyHistogram`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from difficulty.budget.prices import ModelPrice, Unit, cost_of
from difficulty.budget.stopping import StopConfig
from sharding.config import STRICT

HALF_RESOLUTION_TOKENS = 2048.0
"""Thinking tokens expected to resolve half of a segment's difficulty: an assumption, at the scale of the traces that
thinking augmented pre-training uses (arXiv 2509.20186: at most 8k tokens on at most 2k of context)."""

Context = Literal["full", "contraction", "retrieved"]

DEFAULT_PASSAGES = 4

LEAST_CONTRACTION_TOKENS, CONTRACTION_TOKENS = 64, 256
"""With fewer than the first a contraction can't say what a document is about, and what in it holds from here on."""

NUMBERS = ("thinking_tokens", "thinking_tokens_per_source_token", "dollars", "gpu_hours")
"""Keys of a budget that hold its number, of which it has one."""

_MOST_DIGITS = 1e5


def as_config(number: float) -> str:
    """A budget as one writes it into a config: all digits of a large one, six of a small one."""
    return f"{number:.0f}" if abs(number) >= _MOST_DIGITS else f"{number:.6g}"


POLICIES = {
    "adaptive": "difficulty.budget.policies.adaptive",
    "uniform": "difficulty.budget.policies.uniform",
    "fixed": "difficulty.budget.policies.fixed",
    "learned": "difficulty.budget.policies.learned",
}
"""The policies by the names they have in a config, and where they are; see `difficulty.budget.policies`."""

if TYPE_CHECKING:
    PolicyName = str
else:
    PolicyName = Literal[tuple(POLICIES)]

Axis = Literal["difficulty", "hash", "none", "gain"]


_MARGIN = {"tokens": (1000, "1,000 tokens bring"), "dollars": (1, "dollar brings"), "gpu_hours": (1, "GPU-hour brings")}


def margin_in_words(unit: Unit, marginal_nats: float) -> str:
    """What the last of a budget brings, from nats per unit."""
    size, words = _MARGIN[unit]
    return f"the last {words} {size * marginal_nats:.3g}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StepConfig:
    """What a step of a recipe asks for where it isn't what the recipe or the tier says."""

    prompt: str | None = Field(default=None, min_length=1, description="Name of the prompt template.")
    model: str | None = Field(default=None, min_length=1, description="Name of an entry of `models`.")
    max_tokens: int | None = Field(default=None, ge=16, description="Cap on the step; never more than is left.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="In place of sampling.temperature.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="In place of sampling.top_p.")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TierConfig:
    """One way to think about a segment. A tier with a name alone skips: cost 0, resolution 0."""

    name: str = Field(min_length=1, description="Unique name of the tier.")
    model: str | None = Field(default=None, description="Name of an entry of `models`; none for the tier that skips.")
    prompt: str | None = Field(default=None, description="Name of the prompt template.")
    max_tokens: int | None = Field(
        default=None, gt=0, description="Cap on the tokens of one generation; of a recipe, of all its calls together."
    )
    min_tokens: int = Field(default=0, ge=0, description="Tokens a generation has at least.")
    samples: int = Field(default=1, gt=0, description="Generations per segment, of which selection keeps the best.")
    recipe: str = Field(
        default="single",
        min_length=1,
        description="The calls that a generation is made by: single; refine (draft, critique, rewrite); branch "
        '(drafts, a choice, then refined); or your own as "file.py:name".',
    )
    rounds: int = Field(default=1, gt=0, le=16, description="Of critique and rewriting, in recipes with such.")
    drafts: int = Field(default=3, gt=1, le=32, description="To choose among, in the recipe branch.")
    steps: dict[str, StepConfig] = Field(
        default_factory=dict, description="Steps of the recipe that ask for something else, by their names."
    )
    context: Context | tuple[Context, ...] = Field(
        default="full",
        description="What its prompts show beside the segment: full, as much of the document before it as fits; "
        "contraction, what a model has made of all of that in at most budget.contraction_tokens; retrieved, passages "
        "from elsewhere; or a list of one of the first two and retrieved.",
    )
    passages: int = Field(
        default=DEFAULT_PASSAGES,
        gt=0,
        le=8,
        description="How many passages its prompts show, where its context is retrieved.",
    )
    expected_tokens: float | None = Field(
        default=None, gt=0, description="Tokens one generation takes on average; by default the cap, a plan's ceiling."
    )
    expected_resolution: float | None = Field(
        default=None, ge=0, le=1, description="Measured share of a segment's difficulty that the tier resolves."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model is None:
            optional = ("prompt", "max_tokens", "expected_tokens", "expected_resolution")
            extra = [name for name in optional if getattr(self, name) is not None]
            extra += ["min_tokens"] * (self.min_tokens > 0) + ["samples"] * (self.samples > 1)
            extra += ["recipe"] * (self.recipe != "single") + ["context"] * (self.context != "full")
            extra += ["passages"] * (self.passages != DEFAULT_PASSAGES)
            if extra:
                raise ValueError(f"tier {self.name} has {', '.join(extra)} but no model; to skip, leave all out")
            return self
        if not self.contexts or len(set(self.contexts)) != len(self.contexts):
            raise ValueError(f"tier {self.name}: context {list(self.contexts)} is empty, or names something twice")
        if {"full", "contraction"} <= set(self.contexts):
            raise ValueError(f"tier {self.name}: context is full or contraction, not both: one stands for the other")
        if self.passages != DEFAULT_PASSAGES and "retrieved" not in self.contexts:
            raise ValueError(f"tier {self.name} has passages, and a context without retrieved")
        if self.recipe == "single":
            defaults: tuple[tuple[str, Any], ...] = (("rounds", 1), ("drafts", 3), ("steps", {}))
            if unused := [name for name, default in defaults if getattr(self, name) != default]:
                raise ValueError(f"tier {self.name} has {', '.join(unused)}, which recipe single knows nothing of")
        missing = [name for name in ("prompt", "max_tokens") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"tier {self.name} has a model but no {' and no '.join(missing)}")
        cap = self.max_tokens or 0
        if self.min_tokens > cap:
            raise ValueError(f"tier {self.name}: min_tokens {self.min_tokens} exceeds max_tokens {cap}")
        if self.expected_tokens is not None and not self.min_tokens <= self.expected_tokens <= cap:
            raise ValueError(
                f"tier {self.name}: expected_tokens {self.expected_tokens:g} is not between "
                f"min_tokens {self.min_tokens} and max_tokens {cap}"
            )
        return self

    @property
    def contexts(self) -> tuple[str, ...]:
        """`context` as a list, in the order in which a prompt shows them."""
        return (self.context,) if isinstance(self.context, str) else self.context

    @property
    def skips(self) -> bool:
        """Whether segments of this tier get no thinking."""
        return self.model is None

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it asks: its own, and those of its recipe's steps; none of the tier that skips."""
        named = (self.model, *(step.model for step in self.steps.values()))
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def model_of(self, step: str) -> str | None:
        """The model that makes a step of its recipe, whichever time it is asked for; "" is what has no steps."""
        told = self.steps.get(step.partition(" ")[0])
        return self.model if told is None or told.model is None else told.model

    @property
    def tokens_per_segment(self) -> float:
        """Thinking tokens a segment is expected to take, all samples together."""
        per_sample = self.expected_tokens if self.expected_tokens is not None else self.max_tokens or 0
        return float(self.samples * per_sample)

    @property
    def resolution(self) -> float:
        """Share of a segment's difficulty the tier is expected to resolve, in [0, 1].

        As measured, else the prior t / (t + HALF_RESOLUTION_TOKENS) in all t tokens of the segment: concave in t, and a
        logistic curve in log t, the form in which returns on test-time compute are reported (arXiv 2408.03314: about
        even gains per doubling, then saturation). The prior knows no models: with equal tokens, a larger one needs its
        `expected_resolution` measured to be bought at all.
        """
        if self.expected_resolution is not None:
            return self.expected_resolution
        return self.tokens_per_segment / (self.tokens_per_segment + HALF_RESOLUTION_TOKENS)

    def cost(self, unit: Unit, prices: Mapping[str, ModelPrice]) -> float:
        """Expected spend on one segment, in `unit`; where steps have models of their own, as if all were the dearest.

        Raises:
            RequestError: the unit needs a price that the tier's model doesn't have.
        """
        if self.model is None:
            return 0.0
        return cost_of(self.tokens_per_segment, self.models, unit, prices, f"tier {self.name}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetConfig:
    """The `budget` section: one number, and the tiers it may be spent on."""

    policy: PolicyName = Field(
        default="adaptive",
        description="adaptive: by difficulty; uniform: as many of each tier, by hash; fixed: one tier for all; "
        "learned: by the gain that a pilot (`thoughtmill plan --pilot N --explore`) leads to expect.",
    )
    thinking_tokens: int | None = Field(default=None, gt=0, description="The budget in generated tokens.")
    thinking_tokens_per_source_token: float | None = Field(
        default=None, gt=0, description="The budget in generated tokens per training token of the source."
    )
    dollars: float | None = Field(default=None, gt=0, description="The budget in dollars.")
    gpu_hours: float | None = Field(default=None, gt=0, description="The budget in GPU-hours.")
    tiers: tuple[TierConfig, ...] = Field(min_length=1, description="The tiers, in any order.")
    fixed_tier: str | None = Field(default=None, description="Name of the tier for all, under policy fixed.")
    contraction_model: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the entry of `models` that contracts documents, a cheap one.",
    )
    contraction_tokens: int = Field(
        default=CONTRACTION_TOKENS,
        ge=LEAST_CONTRACTION_TOKENS,
        le=2048,
        description="Cap on the tokens of a contraction, each of which counts in the budget.",
    )
    contraction_prompt: str = Field(
        default="contract",
        min_length=1,
        description="Name of the prompt template of contractions; its slots beside {text}: {contraction}, {words}.",
    )
    pilot_segments: int | None = Field(
        default=None,
        gt=0,
        description="Under policy learned, `thoughtmill run` begins with an exploring pilot of so many segments where "
        "none has been made; null: it stops and asks for one.",
    )
    stop_if: StopConfig | None = Field(
        default=None, description="Stop where traces are not as the pilot promised; null: warn alone. Needs a pilot."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        set_ = [name for name in NUMBERS if getattr(self, name) is not None]
        if len(set_) != 1:
            found = f"{' and '.join(set_)} are set" if set_ else "none is"
            raise ValueError(f"exactly one of {', '.join(NUMBERS)} is needed, but {found}")
        names = [tier.name for tier in self.tiers]
        if len(set(names)) != len(names):
            raise ValueError(f"tier names must differ: {', '.join(names)}")
        if sum(tier.skips for tier in self.tiers) > 1:
            raise ValueError("more than one tier without a model")
        thinking = [tier.name for tier in self.tiers if not tier.skips]
        if not thinking and self.policy != "fixed":
            raise ValueError("no tier has a model, so there is nothing to spend on")
        # The tier that skips is allowed: a corpus without thoughts, to compare with.
        if self.policy == "fixed" and self.fixed_tier not in names:
            raise ValueError(f"policy fixed needs fixed_tier, one of {', '.join(names)}; got {self.fixed_tier}")
        if self.policy != "fixed" and self.fixed_tier is not None:
            raise ValueError(f"fixed_tier {self.fixed_tier} is set, but policy is {self.policy}")
        contracting = [tier.name for tier in self.tiers if "contraction" in tier.contexts]
        if contracting and self.contraction_model is None:
            raise ValueError(
                f"tier {contracting[0]} shows a contraction: name the model that writes it in contraction_model"
            )
        if not contracting and self.contraction_model is not None:
            raise ValueError(
                f"contraction_model {self.contraction_model} is set, but no tier shows a contraction: set the context "
                "of one to contraction, or leave contraction_model out"
            )
        if self.policy != "learned" and self.pilot_segments is not None:
            raise ValueError(f"pilot_segments {self.pilot_segments} is set, but policy is {self.policy}")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are asked: those of the tiers, and the one that contracts documents."""
        named = [name for tier in self.tiers for name in tier.models]
        return tuple(dict.fromkeys([*named, *([self.contraction_model] if self.contraction_model else [])]))

    @property
    def retrieves(self) -> bool:
        """Whether a tier shows passages from elsewhere."""
        return any("retrieved" in tier.contexts for tier in self.tiers)

    def contraction_spend(self, segments: float, documents: float, prices: Mapping[str, ModelPrice]) -> float:
        """What the contractions of so many documents take at most, in `unit`: of each all segments but the last.

        Raises:
            RequestError: the unit needs a price that the model which contracts doesn't have.
        """
        if self.contraction_model is None:
            return 0.0
        tokens = max(0.0, segments - documents) * self.contraction_tokens
        return cost_of(tokens, [self.contraction_model], self.unit, prices, "contractions")

    @property
    def key(self) -> str:
        """Full path of the key that holds the number."""
        return "budget." + next(name for name in NUMBERS if getattr(self, name) is not None)

    @property
    def unit(self) -> Unit:
        """What spend is counted in."""
        if self.dollars is not None:
            return "dollars"
        return "gpu_hours" if self.gpu_hours is not None else "tokens"

    def target_spend(self, source_tokens: int) -> float:
        """The budget in `unit`, for a source of that many training tokens."""
        if self.thinking_tokens_per_source_token is not None:
            return self.thinking_tokens_per_source_token * source_tokens
        return float(self.thinking_tokens or self.dollars or self.gpu_hours or 0)

    def number_for(self, spend: float, source_tokens: int) -> float:
        """The value of `key` that asks for this spend; what an error about the reachable range quotes."""
        return spend / source_tokens if self.thinking_tokens_per_source_token is not None else spend
