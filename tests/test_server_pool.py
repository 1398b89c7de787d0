"""A server that rests is looked after, whatever goes wrong while looking."""

import asyncio
import time

import pytest

from sharding.models import server_pool
from sharding.models.served import Served
from sharding.models.server_pool import COMPLETIONS, EndpointPool
from tests.endpoint_server import SERVED, ScriptedServer


def test_looking_after_a_server_goes_on_after_an_error_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "FIRST_PAUSE_S", 0.02)
    server = ScriptedServer()
    looks: list[Served] = []

    def check(_: str, served: Served) -> None:
        looks.append(served)
        if 1 < len(looks) < 4:
            raise ValueError("no error of ours")

    async def use() -> None:
        pool = EndpointPool([server.url], model=SERVED, timeout_s=5, max_wait_s=900, check=check)
        await pool.start()
        server.stop()
        asking = asyncio.create_task(pool.post(COMPLETIONS, {"model": SERVED}, dict))
        await asyncio.sleep(0.05)  # it can't be reached, and rests
        server.start()
        answer, served = await asyncio.wait_for(asking, 10)
        assert answer["model"] == SERVED and served.max_model_len == 4096
        await pool.close()

    began = time.monotonic()
    try:
        asyncio.run(use())
    finally:
        server.stop()
    assert len(looks) == 4 and time.monotonic() - began < 10
