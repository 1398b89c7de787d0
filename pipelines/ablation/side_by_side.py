"""Training runs side by side: a process each, as many as cores or GPUs allow."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from typing import TYPE_CHECKING, NamedTuple

from sharding.errors import MillError, RequestError

if TYPE_CHECKING:
    from pipelines.ablation.training import Training

_LOOK_S = 0.5


class _Child(NamedTuple):
    process: BaseProcess
    training: Training
    slot: int
    said: Connection


def train_all(
    trainings: Sequence[Training],
    at_once: int,
    on_step: Callable[[Training, int], None] = lambda training, tokens: None,
) -> None:
    """Train all that isn't trained yet; each leaves its `curve.json`.

    Args:
        trainings: what to train.
        at_once: processes; with 1 everything is trained in this one.
        on_step: called with a training run and the tokens it has come to.

    Raises:
        RequestError, MillError: as `train`; the other runs are ended, and go on from their checkpoints the next time.
    """
    from pipelines.ablation.training import finished, train

    waiting = []
    for training in trainings:  # without a process for each of them
        if (found := finished(training)) is not None:
            on_step(training, found.tokens)
        else:
            waiting.append(training)
    if at_once == 1 or len(waiting) == 1:
        for training in waiting:
            train(training, lambda tokens, training=training: on_step(training, tokens))  # type: ignore[misc]
        return
    free = list(range(at_once))
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and free:
                children.append(_start(waiting.pop(0), free.pop(0)))
            wait([child.said for child in children], timeout=_LOOK_S)
            for child in list(children):
                if _hear(child, on_step):
                    children.remove(child)
                    free.append(child.slot)
    finally:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join()


def _start(training: Training, slot: int) -> _Child:
    # Spawned: a fork of a process whose threads hold locks may never come to its first line.
    context = multiprocessing.get_context("spawn")
    said, say = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(replace(training, number=slot), say), daemon=True)
    process.start()
    say.close()
    return _Child(process, training, slot, said)


def _hear(child: _Child, on_step: Callable[[Training, int], None]) -> bool:
    """What a child has said since it was last heard; whether it has come to its end.

    Raises:
        RequestError, MillError: it failed.
    """
    try:
        while child.said.poll():
            match child.said.recv():
                case int(tokens):
                    on_step(child.training, tokens)
                case (kind, str(message)):
                    raise (RequestError if kind == "RequestError" else MillError)(message)
    except EOFError:
        child.process.join()
        if child.process.exitcode:
            raise MillError(
                f"the training of arm {child.training.arm}, seed {child.training.seed}, ended with exit code "
                f"{child.process.exitcode}, without a word: out of memory? Lower ablation.parallel or "
                "ablation.micro_batch_tokens; what is trained is kept"
            ) from None
        return True
    return False


def _work(training: Training, say: Connection) -> None:
    from pipelines.ablation.training import train

    parent = parent_process()

    def on_step(tokens: int) -> None:
        if parent is not None and not parent.is_alive():
            os._exit(1)  # nobody is there to hear
        say.send(tokens)

    try:
        train(training, on_step)
    except (RequestError, MillError) as error:
        say.send((type(error).__name__, str(error)))
    except KeyboardInterrupt:
        os._exit(130)
