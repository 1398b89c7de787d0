"""A server that rests is looked after, whatever goes wrong while looking."""

import asyncio
import time

import pytest

from sharding.models import server_pool
from sharding.models.served import Served
from sharding.models.server import EndpointClient
from sharding.models.server_patience import Endpoint
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


def test_requests_that_begin_alike_go_to_one_server() -> None:
    """Unless it has many more than another: the pool's own counts say so, not the servers'."""
    servers = [ScriptedServer() for _ in range(3)]

    async def ask(pool: EndpointPool, group: str) -> str:
        _, served = await pool.post(COMPLETIONS, {"model": SERVED}, dict, group=group)
        return next(e.client.url for e in pool._endpoints if e.served is served)

    async def use() -> None:
        urls = [server.url for server in servers]
        pool = EndpointPool(urls, model=SERVED, timeout_s=5, max_wait_s=900)
        await pool.start()
        assert len({await ask(pool, "") for _ in range(3)}) == 3
        homes = {group: await ask(pool, group) for group in "abc"}
        assert len(set(homes.values())) == 3
        for group in "abcaabbccab":
            assert await ask(pool, group) == homes[group]
        full = next(e for e in pool._endpoints if e.client.url == homes["a"])
        full.outstanding += 1
        assert await ask(pool, "a") == homes["a"], "one more is no reason"
        full.outstanding += 1
        elsewhere = await ask(pool, "a")
        assert elsewhere != homes["a"] and await ask(pool, "a") == elsewhere
        full.outstanding -= 2
        await pool.close()

    try:
        asyncio.run(use())
    finally:
        for server in servers:
            server.stop()


def test_a_pool_remembers_so_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_pool, "MAX_HOMES", 2)
    pool = EndpointPool(["http://localhost:1"], model=SERVED, timeout_s=5, max_wait_s=900)
    one = Endpoint(EndpointClient("http://localhost:1", model=SERVED, api_key_env=None))
    for group in ("a", "b", "a", "c"):
        assert pool._home(group, [one]) is one
    assert list(pool._homes) == ["a", "c"]
