"""One feeder per model per worker process, and who may have an engine in memory.

Bundles, threads and pipeline branches of a process that name the same model share its engine. Engines of several
models stay in memory together while their shares add up to no more than the whole; otherwise an engine that has
nothing to do is closed before the next one starts, so that two tiers with two models run one after the other on one
machine. Where a job has several processes on a machine, one of them has all its engines: see `feeding.shared.owner`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from dataclasses import dataclass

from augment.engines import count_replicas, create_engine
from augment.engines.config import ModelConfig
from augment.engines.protocol import Engine, Placeable
from augment.feeding.config import FeedingConfig
from augment.feeding.feeder import Feeder
from augment.feeding.keeper import EngineHolder, Place
from augment.feeding.shared.client import ElsewhereEngine
from augment.feeding.shared.frames import Hello, hello
from augment.feeding.shared.owner import EngineHost
from augment.feeding.stats import FeederStats
from augment.feeding.tickets import FeederClosed

_POLL_S = 0.05


class SharedMemory:
    """Shares of one machine's accelerator memory, from 0 to 1 in all; one holder may always have an engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[Place, float] = {}

    async def reserve(self, holder: Place, share: float) -> None:
        """Return when `holder` may start an engine that takes `share`; others that are idle let go of theirs."""
        while True:
            with self._lock:
                others: dict[EngineHolder, float] = {}  # replicas of one model have accelerators of their own
                for other, held in self._shares.items():
                    if other.feeder is not holder.feeder and held > 0:
                        others[other.feeder] = max(held, others.get(other.feeder, 0.0))
                if share == 0 or not others or sum(others.values()) + share <= 1.0:
                    self._shares[holder] = share
                    return
            for feeder in others:
                if feeder.idle:
                    feeder.close_engine_if_idle()
            await asyncio.sleep(_POLL_S)

    def release(self, holder: Place) -> None:
        """Give back what `holder` reserved."""
        with self._lock:
            self._shares.pop(holder, None)


class Registry:
    """The feeders of a process."""

    def __init__(self) -> None:
        self.memory = SharedMemory()
        self._lock = threading.Lock()
        self._feeders: dict[tuple[bytes, bytes, str | None], Feeder] = {}
        self._users: dict[Feeder, int] = {}
        self._names: dict[Feeder, set[str]] = {}  # of the config's models that share it
        self._hosts: dict[str, EngineHost] = {}
        self._closing = False

    def acquire(
        self,
        model: ModelConfig,
        config: FeedingConfig | None = None,
        *,
        job: str | None = None,
        name: str | None = None,
    ) -> Feeder:
        """This process's feeder for a model; the same one for equal configs until it fails or is closed.

        Its engine starts with its first request. Give it back with `release`.

        Args:
            job: the processes of one machine that name the same job share the engines that take its memory: one of
                them has them, the others ask it. None: this process shares with nobody.
            name: the model's key in the config, for `stats`: two of them may have one `model.name`.

        Raises:
            FeederClosed: all engines of this process are being ended.
        """
        config = config or FeedingConfig()
        if model.engine_args.get("enable_prefix_caching") is False:
            config = dataclasses.replace(config, prefix_groups=False)
        said = hello(name or model.name, model, config)
        key = (said.model, said.feeding, job)
        replicas = count_replicas(model)
        broken: Feeder | None = None
        with self._lock:
            if self._closing:
                raise FeederClosed(f"the engines of this process are being ended; that of {model.name} isn't started")
            feeder = self._feeders.get(key)
            if feeder is not None and feeder.error is not None:
                broken, feeder = feeder, None
            if feeder is None:
                engines = [_ModelEngines(self, said, model, job, number, replicas) for number in range(replicas)]
                feeder = self._feeders[key] = Feeder(
                    *engines, name=model.name, config=config, max_in_flight=model.max_in_flight
                )
            self._users[feeder] = self._users.get(feeder, 0) + 1
            self._names.setdefault(feeder, set()).add(said.name)
        if broken is not None:
            self._names.pop(broken, None)
            broken.close()
        return feeder

    def release(self, feeder: Feeder) -> None:
        """Give a feeder back. Its engine stays until another model needs the memory, or `close_all`."""
        with self._lock:
            users = self._users.get(feeder, 0) - 1
            if users > 0:
                self._users[feeder] = users
                return
            self._users.pop(feeder, None)
        if feeder.error is not None:
            feeder.close()

    def stats(self) -> dict[str, FeederStats]:
        """What this process's feeders are doing, by the model's name in the config; not those that ask another process.

        Models with one config share an engine, and stand here together: "a, b".
        """
        with self._lock:
            feeders = {", ".join(sorted(self._names[feeder])): feeder for feeder in self._feeders.values()}
        return {name: found for name, feeder in feeders.items() if not (found := feeder.stats()).elsewhere}

    def close_all(self, drain_s: float = 0.0) -> None:
        """End every engine of this process. At exit engines end by themselves.

        Args:
            drain_s: what is in flight may go on for so long, seconds; what doesn't finish fails. Requests of other
                processes too, which are told to end with this one; without it they look for another owner at once.
        """
        with self._lock:
            self._closing = True
            feeders, hosts = {*self._feeders.values(), *self._users}, list(self._hosts.values())
            for held in (self._feeders, self._users, self._names, self._hosts):
                held.clear()
        try:
            for host in hosts:
                host.stop_listening()
            for feeder in feeders:
                feeder.end(drain_s=drain_s)
            for feeder in feeders:
                feeder.close()
            for host in hosts:
                host.disown()
        finally:
            with self._lock:
                self._closing = False

    def host(self, job: str) -> EngineHost:
        """This process's place among those that share the engines of a job."""
        with self._lock:
            if job not in self._hosts:
                self._hosts[job] = EngineHost(job, self)
            return self._hosts[job]


@dataclass(frozen=True)
class _ModelEngines:
    """The engines of one replica of a model: of this process, or of the one that has those of the job."""

    registry: Registry
    hello: Hello
    model: ModelConfig
    job: str | None
    replica: int
    replicas: int

    def make(self) -> Engine:
        engine = create_engine(self.model)
        if self.replicas > 1 and isinstance(engine, Placeable):
            engine.place(self.replica, self.replicas)
        if self.job is None or engine.memory_share == 0:
            return engine
        host = self.registry.host(self.job)
        return engine if host.try_own() else ElsewhereEngine(host.address, self.hello, capacity=engine.capacity)

    async def reserve(self, holder: Place, share: float) -> None:
        await self.registry.memory.reserve(holder, share)

    def release(self, holder: Place) -> None:
        self.registry.memory.release(holder)


_process = Registry()
acquire, release, stats, close_all = _process.acquire, _process.release, _process.stats, _process.close_all
