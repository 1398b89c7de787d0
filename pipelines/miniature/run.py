"""`make evidence`: the miniature from nothing to its verdict.

    inputs ─► teacher on a port of its own ─► scores ─► pilot, for the arm learned ─► the noise arm
                  ─► `ablate`: the other arms, students, verdict ─► out/miniature/mill/ablation/ablation.json

What is done is skipped, as everywhere in the mill.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from pipelines import cli, yaml_config
from pipelines.arms.kinds import LEARNED, arm_config
from pipelines.config import MillConfig
from pipelines.miniature.inputs import TINY, Scale, make_inputs
from pipelines.miniature.teacher import Manners, Teacher, serve
from pipelines.miniature.world import load_world
from pipelines.plan import make_plan
from pipelines.plan.learned import find_gain
from pipelines.run import mill
from sharding.errors import RequestError
from sharding.models.tokenizer import load_tokenizer
from sharding.storage.files import write_bytes

CONFIG = "configs/miniature.yaml"
OUTPUT = "out/miniature"
NOISE = "thoughts_on_noise"
"""An arm of the miniature's own: the thoughts of adaptive about numbers, and no others."""

PILOT_SEGMENTS = 200

FULL_SEEDS = tuple(range(10))
FULL_ARMS = ("raw", "uniform", "adaptive", "learned", "shuffled", "dose_0.25", "dose_0.5", "dose_1", "dose_2")

_TINY_TRAINING = (
    "ablation.tokens=4096",
    "ablation.eval_every=2048",
    "ablation.seeds=[0]",
    "ablation.arms=[raw, adaptive, learned]",
    "ablation.influence=null",
)


def overrides_of(output: Path, url: str, scale: Scale, *, full: bool = False) -> list[str]:
    """What differs from `CONFIG`, as `--set` takes it.

    Args:
        output: the folder of everything.
        url: where the teacher is.
        scale: of the inputs.
        full: ten seeds, the noise arm and the dose curve.
    """
    inputs = output / "inputs"
    found = [
        f"source.path={inputs / 'documents.jsonl'}",
        f"output={output / 'mill'}",
        f"tokenizer={inputs / 'tokenizer'}",
        f"difficulty.model={inputs / 'scorer'}",
        f"models.teacher.name={inputs / 'tokenizer'}",
        f'models.teacher.urls=["{url}"]',
        f"ablation.evaluators.0.options.world={inputs / 'world.json'}",
    ]
    if full or scale == TINY:
        found.append(f"ablation.outputs.{NOISE}={output / NOISE}")
    if full:
        found += [f"ablation.seeds={list(FULL_SEEDS)}", f"ablation.arms=[{', '.join(FULL_ARMS)}]"]
    if scale == TINY:
        found += [*_TINY_TRAINING]
    return found


@contextmanager
def teacher_at_work(inputs: Path, manners: Manners, port: int = 0) -> Iterator[str]:
    """A teacher that answers until the block ends: its URL."""
    teacher = Teacher(load_world(str(inputs / "world.json")), manners)
    server = serve(teacher, load_tokenizer(str(inputs / "tokenizer")), port)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def keep_manners(inputs: Path, manners: Manners) -> None:
    """Note the manners of the teacher whose thoughts are in an output: its name says nothing of them.

    Raises:
        RequestError: the output has thoughts of a teacher with other manners.
    """
    noted = inputs / "teacher.json"
    if not noted.is_file():
        write_bytes(str(noted), msgspec.json.encode(manners))
    elif (found := msgspec.json.decode(noted.read_bytes(), type=Manners)) != manners:
        raise RequestError(
            f"{inputs.parent} has thoughts of a teacher with other manners ({found}): name another output"
        )


def explore(config: MillConfig) -> None:
    """Learn what pays, for the arm learned, unless that was done."""
    learned = arm_config(config, LEARNED)
    if find_gain(learned) is None:
        tree = yaml_config.to_mapping(learned) | {"output": config.output, "scored": None}
        make_plan(yaml_config.from_mapping(tree, LEARNED), pilot=PILOT_SEGMENTS, explore=True)


def noise_config(config: MillConfig, output: Path) -> MillConfig:
    """The arm adaptive with its thoughts about numbers alone: bought for the same money, and no help."""
    tree = yaml_config.to_mapping(arm_config(config, "adaptive"))
    tree["output"] = str(output / NOISE)
    tree["select"] |= {"value": "pipelines.miniature.values:OnNoise", "keep": "best_above", "min_value": 0.5}
    return yaml_config.from_mapping(tree, NOISE)


def make_evidence(output: Path, scale: Scale, *, full: bool = False, manners: Manners | None = None) -> None:
    """Make the inputs, the arms and the students that aren't made, and print the verdict.

    Args:
        output, scale, full: see `overrides_of`.
        manners: of the teacher; None: as a `Manners` without arguments.

    Raises:
        RequestError: what is there is of another scale, or of a teacher with other manners.
    """
    inputs, manners = output / "inputs", manners or Manners()
    make_inputs(inputs, scale)
    keep_manners(inputs, manners)
    with teacher_at_work(inputs, manners) as url:
        overrides = overrides_of(output, url, scale, full=full)
        config = yaml_config.load(CONFIG, overrides)
        mill(config, stages=("score",))
        explore(config)
        if NOISE in config.ablation.outputs:
            mill(noise_config(config, output))
        _command(["ablate", CONFIG, *(word for override in overrides for word in ("--set", override))])


def _command(words: Sequence[str]) -> None:
    """A command of thoughtmill, as a shell runs it; one that fails ends this process as well."""
    sys.argv = ["thoughtmill", *words]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise


def main(
    output: Annotated[Path, typer.Option(help="Folder of everything.")] = Path(OUTPUT),
    full: Annotated[bool, typer.Option(help="Ten seeds, the noise arm and the dose curve.")] = False,
    tiny: Annotated[bool, typer.Option(help="Only to see that it runs.")] = False,
    wrong_share: Annotated[float, typer.Option(min=0, max=1, help="Of the teacher's chains.")] = 0.1,
    verbose: Annotated[bool, typer.Option(help="A teacher that is wordy where nothing is to be said.")] = False,
) -> None:
    """Run the miniature."""
    manners = Manners(wrong_share=wrong_share, verbose=verbose)
    make_evidence(output, TINY if tiny else Scale(), full=full, manners=manners)


if __name__ == "__main__":
    typer.run(main)
