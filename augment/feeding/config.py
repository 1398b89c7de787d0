"""How an engine is fed: the `feeding` section of the config."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from sharding.config import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeedingConfig:
    """How an engine is fed."""

    max_waiting: int = Field(
        default=4096, gt=0, description="Requests waiting per engine; more make the submitter wait."
    )
    max_attempts: int = Field(default=4, gt=0, description="Tries per request before it is given up alone.")
    backoff_s: float = Field(default=1.0, ge=0, description="Wait before the second try, seconds; doubles with each.")
    max_backoff_s: float = Field(default=60.0, ge=0, description="Longest wait between tries, seconds.")
    max_restarts: int = Field(default=6, ge=0, description="Deaths of an engine in a row, nothing finished in between.")
    stall_s: float = Field(
        default=3600.0, gt=0, description="Nothing finished for so many seconds: the engine is restarted."
    )
    prefix_groups: bool = Field(
        default=True,
        description="Requests about one document go to one engine, or one of a model's urls, one after the other, for "
        "its prefix cache; false: by length alone, and to whichever has most room. Off by itself where a model's "
        "engine_args say enable_prefix_caching: false.",
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        description="On SIGTERM requests at an engine may go on for so long, seconds; what there is of the others is "
        "kept then, and the next run goes on from it.",
    )
