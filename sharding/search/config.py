"""A search server: the section `retrieval.server` of the config."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from sharding.config import STRICT
from sharding.models.connections import check_url


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SearchServerConfig:
    """An OpenSearch or Elasticsearch server that keeps the index of passages, for corpora beyond one machine."""

    url: str = Field(min_length=1, description="Where it is: https://host:9200, with a path where it has one.")
    index_prefix: str = Field(
        default="thoughtmill",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="Names of indexes begin with it: PREFIX-passages-DIGEST.",
    )
    shards: int | None = Field(
        default=None, gt=0, le=1024, description="Primary shards of an index that is made; null: the server's default."
    )
    api_key_env: str | None = Field(
        default=None, min_length=1, description="Environment variable with an API key; null: it needs none."
    )
    login_env: str | None = Field(
        default=None, min_length=1, description="Environment variable with `user:password`; null: it needs none."
    )
    timeout_s: float = Field(default=60.0, gt=0, description="For a whole answer, seconds.")
    max_wait_s: float = Field(
        default=900.0, gt=0, description="How long it may take no request (full, away) before the run stops, seconds."
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> SearchServerConfig:
        check_url(self.url)
        if self.api_key_env is not None and self.login_env is not None:
            raise ValueError("api_key_env and login_env are two ways to the same end: set one of them")
        return self
