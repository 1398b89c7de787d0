"""The index of passages that a run's prompts show: which one it is, of which corpus, and whether that is there."""

from __future__ import annotations

import dataclasses

from augment.contexts.passage_index import INDEX_FORMAT
from augment.contexts.server_index import SERVER_FORMAT
from augment.requests.planner import TracePlanner
from augment.requests.tiers import PASSAGE_CHARACTERS, IndexRequest
from pipelines.config import MillConfig
from sharding.hashing import fingerprint
from sharding.storage import manifest
from sharding.storage.output import Output

_MADE_AS = f"passages {INDEX_FORMAT} of {PASSAGE_CHARACTERS}"


def index_request(config: MillConfig) -> IndexRequest | None:
    """The index that a run needs; None where no tier shows passages.

    Raises:
        MillError: the corpus that it is made from isn't scored.
    """
    if not config.budget.retrieves:
        return None
    corpus = manifest.require(searched_output(config), "score")
    made_from = [_made_as(config), "\0", manifest.digest(corpus)]
    server = config.retrieval.server
    return IndexRequest(url=Output(config.output).passages, digest=fingerprint(made_from), server=server)


def searched_output(config: MillConfig) -> str:
    """The output whose scored documents are searched."""
    return config.retrieval.corpus or config.scored or config.output


def index_inputs(config: MillConfig) -> dict[str, str]:
    """What of the index decides what is asked for, as name → digest; empty where no tier shows passages.

    Of the run's own corpus the scores are an input of their own, which a removal of documents settles.

    Raises:
        MillError: as `index_request`.
    """
    index = index_request(config)
    if index is None:
        return {}
    return {"passages": _made_as(config) if config.retrieval.corpus is None else index.digest}


def with_index(planner: TracePlanner, config: MillConfig) -> TracePlanner:
    """A planner that knows where passages are found.

    Raises:
        MillError: as `index_request`.
    """
    index = index_request(config)
    return planner if index is None else dataclasses.replace(planner, index=index)


def _made_as(config: MillConfig) -> str:
    """How passages are made and found. Where the server is doesn't decide that; which version it has, its index knows:
    a finished stage asks no server."""
    return _MADE_AS if config.retrieval.server is None else f"{_MADE_AS} in a search server {SERVER_FORMAT}"
