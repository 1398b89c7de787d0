"""One feeder per model per worker process, and who may have an engine in memory.

Bundles, threads and pipeline branches of a process that name the same model share its engine. Engines of several
models stay in memory together while their shares add up to no more than the whole; otherwise an engine that has
nothing to do is closed before the next one starts, so that two tiers with two models run one after the other on one
machine. Where a job has several processes on a machine, one of them has all its engines: see `feeding.shared.owner`.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial

from pydantic import TypeAdapter

from augment.engines import create_engine
from augment.engines.config import ModelConfig
from augment.engines.protocol import Engine
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.keeper import EngineOwner
from augment.feeding.shared.client import ElsewhereEngine
from augment.feeding.shared.owner import EngineHost
from augment.feeding.stats import FeederStats

_POLL_S = 0.05


class SharedMemory:
    """Shares of one machine's accelerator memory, from 0 to 1 in all; one owner may always have an engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[EngineOwner, float] = {}

    async def reserve(self, owner: EngineOwner, share: float) -> None:
        """Return when `owner` may start an engine that takes `share`; others that are idle let go of theirs."""
        while True:
            with self._lock:
                others = {feeder: held for feeder, held in self._shares.items() if feeder is not owner and held > 0}
                if share == 0 or not others or sum(others.values()) + share <= 1.0:
                    self._shares[owner] = share
                    return
            for feeder in others:
                if feeder.idle:
                    feeder.close_engine_if_idle()
            await asyncio.sleep(_POLL_S)

    def release(self, owner: EngineOwner) -> None:
        """Give back what `owner` reserved."""
        with self._lock:
            self._shares.pop(owner, None)


_lock = threading.Lock()
_feeders: dict[bytes, Feeder] = {}
_users: dict[Feeder, int] = {}
_hosts: dict[str, EngineHost] = {}
_memory = SharedMemory()
_model_json = TypeAdapter(ModelConfig)
_feeding_json = TypeAdapter(FeedingConfig)


def acquire(model: ModelConfig, config: FeedingConfig | None = None, *, job: str | None = None) -> Feeder:
    """This process's feeder for a model; the same one for equal configs until it fails or is closed.

    Its engine starts with its first request. Give it back with `release`.

    Args:
        job: the processes of one machine that name the same job share the engines that take its memory: one of them
            has them, the others ask it. None: this process shares with nobody.
    """
    config = config or FeedingConfig()
    key = b"\n".join([_model_json.dump_json(model), _feeding_json.dump_json(config), (job or "").encode()])
    broken: Feeder | None = None
    with _lock:
        feeder = _feeders.get(key)
        if feeder is not None and feeder.error is not None:
            broken, feeder = feeder, None
        if feeder is None:
            feeder = _feeders[key] = Feeder(
                lambda: _make_engine(model, config, job),
                name=model.name,
                config=config,
                max_in_flight=model.max_in_flight,
                memory=_memory,
            )
        _users[feeder] = _users.get(feeder, 0) + 1
    if broken is not None:
        broken.close()
    return feeder


def release(feeder: Feeder) -> None:
    """Give a feeder back. Its engine stays for the next user until another model needs the memory or `close_all`."""
    with _lock:
        users = _users.get(feeder, 0) - 1
        if users > 0:
            _users[feeder] = users
            return
        _users.pop(feeder, None)
        failed = feeder.error is not None
    if failed:
        feeder.close()


def _make_engine(model: ModelConfig, config: FeedingConfig, job: str | None) -> Engine:
    engine = create_engine(model)
    if job is None or engine.memory_share == 0:
        return engine
    with _lock:
        if job not in _hosts:
            _hosts[job] = EngineHost(job, acquire=partial(_acquire_json, job), release=release)
        host = _hosts[job]
    if host.try_own():
        return engine
    return ElsewhereEngine(
        host.address,
        model=_model_json.dump_json(model),
        feeding=_feeding_json.dump_json(config),
        capacity=engine.capacity,
    )


def _acquire_json(job: str, model: bytes, feeding: bytes) -> Feeder:
    return acquire(_model_json.validate_json(model), _feeding_json.validate_json(feeding), job=job)


def stats() -> dict[str, FeederStats]:
    """What the feeders of this process are doing, by the name of their model; not those that ask another process."""
    with _lock:
        feeders = list(_feeders.values())
    return {feeder.name: found for feeder in feeders if not (found := feeder.stats()).elsewhere}


def close_all() -> None:
    """End every engine of this process; what is in flight fails. At exit engines end by themselves."""
    with _lock:
        feeders, hosts = {*_feeders.values(), *_users}, list(_hosts.values())
        _feeders.clear()
        _users.clear()
        _hosts.clear()
    for host in hosts:
        host.hang_up()
    for feeder in feeders:
        feeder.close()
    for host in hosts:
        host.disown()
