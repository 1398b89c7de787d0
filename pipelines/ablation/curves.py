"""Learning curves: what a student scored after so many training tokens; `curve.json` of each training run."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sharding import storage
from sharding.errors import MillError
from sharding.storage.json_files import Number, read_json


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One point.

    Attributes:
        tokens: training tokens so far, padding counted.
        train_nats: mean surprisal of the labelled tokens trained on since the last point, before each step; None at
            the first one.
        scores: by name; the higher, the better.
    """

    tokens: int
    train_nats: Number | None
    scores: dict[str, Number]


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """The curve of one student.

    Attributes:
        arm, seed: which student.
        output: the output that it is trained on.
        identity: hash of all that decides the numbers, without how many tokens are trained on.
        rows: sequences of the arm's train split; trained on again where tokens ask for more.
        sequence_length: tokens of each.
        parameters: of the student.
        done: whether the last point is the last one asked for.
    """

    arm: str
    seed: int
    output: str
    identity: str
    rows: int
    sequence_length: int
    parameters: int
    points: Annotated[list[Point], msgspec.Meta(max_length=100_000)]
    done: bool = False

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return self.points[-1].tokens if self.points else 0

    @property
    def epochs(self) -> float:
        """How often the arm was seen."""
        return self.tokens / (self.rows * self.sequence_length)

    def values(self, metric: str) -> list[tuple[int, float]]:
        """(training tokens, score) of each point.

        Raises:
            MillError: there is no such score.
        """
        if any(metric not in point.scores for point in self.points):
            known = ", ".join(sorted({name for point in self.points for name in point.scores}))
            raise MillError(f"ablation.target.metric: {metric!r} is not one of the scores {known}")
        return [(point.tokens, point.scores[metric]) for point in self.points]


def read(folder: str) -> Curve | None:
    """The curve of a training run, as far as it has come; None before its first point.

    Raises:
        MillError: the file is not a curve of this version.
    """
    url = storage.join(folder, "curve.json")
    return read_json(url, Curve, "a curve") if storage.exists(url) else None


def write(folder: str, curve: Curve) -> None:
    """Write `curve.json`, over an older one."""
    storage.write_json(storage.join(folder, "curve.json"), msgspec.to_builtins(curve))


def folder_of(output: str, arm: str, seed: int) -> str:
    """Where a student's curve and checkpoint are."""
    return storage.join(output, "ablation", arm, str(seed))


def same(first: Curve, second: Curve) -> bool:
    """Whether two curves say the same, to the bit."""
    return msgspec.json.encode(first) == msgspec.json.encode(second)


def check(found: Curve, identity: str) -> None:
    """Refuse a curve of other settings.

    Raises:
        MillError: it is of others.
    """
    if found.identity != identity:
        raise MillError(
            f"the curve of arm {found.arm}, seed {found.seed}, is of another config or another corpus: "
            "add --replace to train anew, or name another output"
        )
