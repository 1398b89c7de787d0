"""Whether servers can be asked from here, before anything depends on it: part of the preflight of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sharding.errors import MillError
from sharding.models.served import Served, ask_what_is_served
from sharding.models.server import EndpointClient, EndpointFailed


def look_at(
    urls: Sequence[str], *, model: str, api_key_env: str | None, check: Callable[[str, Served], None]
) -> list[MillError]:
    """What keeps this process from asking servers for good: how they are reached, or what those are that answer.

    One that doesn't answer is no problem yet: it may be started later, and is waited for then.

    Args:
        urls, model, api_key_env, check: see `sharding.models.server_pool.EndpointPool`.
    """

    async def look(url: str) -> MillError | None:
        client = None
        try:
            client = EndpointClient(url, model=model, api_key_env=api_key_env)
            check(url, await ask_what_is_served(client, model))
        except EndpointFailed:
            return None
        except MillError as error:
            return error
        finally:
            if client is not None:
                await client.close()
        return None

    async def look_at_all() -> list[MillError | None]:
        return await asyncio.gather(*map(look, urls))

    with ThreadPoolExecutor(1) as thread:  # a notebook has a loop at work in this one
        found = thread.submit(asyncio.run, look_at_all()).result()
    return list({str(error): error for error in found if error is not None}.values())
