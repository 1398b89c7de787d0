"""What a server says of itself: which model it serves, by what software, and how long a text may be."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from sharding.errors import RequestError
from sharding.models.server import EndpointClient, EndpointFailed, EndpointRefused

LOOK_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """What an endpoint says of itself.

    Attributes:
        software: name and version as far as known, such as "vllm 0.32.0".
        max_model_len: tokens of prompt and answer together, or None where it doesn't say.
    """

    software: str = ""
    max_model_len: int | None = None


class _ModelCard(msgspec.Struct):
    """One of the models in a list; what is odd in it says nothing."""

    id: str
    owned_by: Any = None
    max_model_len: Any = None


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Version(msgspec.Struct):
    version: str


async def ask_what_is_served(client: EndpointClient, model: str) -> Served:
    """Ask an endpoint what it serves.

    Raises:
        EndpointFailed, EndpointRefused: it doesn't answer, or not so.
        RequestError: it serves another model.
    """
    cards = (await client.get("/v1/models", _ModelList, timeout_s=LOOK_S)).data
    card = next((card for card in cards if card.id == model), None)
    if card is None:
        names = ", ".join(repr(card.id) for card in cards) or "nothing"
        raise RequestError(f"{client.url} does not serve {model!r} but {client.shown(names)}; set served_name")
    software = card.owned_by if isinstance(card.owned_by, str) else ""
    says = type(card.max_model_len) is int and card.max_model_len > 0  # not so where it is a truth
    with suppress(EndpointFailed, EndpointRefused, RequestError):  # vLLM has this page; others may not
        software += " " + (await client.get("/version", _Version, timeout_s=LOOK_S)).version
    return Served(software=client.shown(software), max_model_len=card.max_model_len if says else None)
