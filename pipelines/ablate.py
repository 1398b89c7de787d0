"""Ablate: the arms are made, a small model is trained on each, and the verdict is written.

    mill_arms ─► arms, outputs of your own ─► arm × seed: curves ─► ablation.json ─► card and report of every output

What is done is skipped: arms by their manifests, students by the identity of their curves. A student whose training was
ended goes on from its checkpoint. `pipelines.ablation` has the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fsspec.implementations.local import LocalFileSystem

from pipelines import yaml_config
from pipelines.ablation import curves, result
from pipelines.ablation.config import EVALUATORS, AblationConfig
from pipelines.ablation.curves import Curve
from pipelines.ablation.dose import dose_of
from pipelines.ablation.evaluators import Setting, check_layout, evaluator_class, prefix_of
from pipelines.ablation.heldout_text import check_held_out
from pipelines.ablation.identity import identity_of, other_texts
from pipelines.ablation.named_models import named_model
from pipelines.ablation.result import Ablation, ArmTrained
from pipelines.ablation.side_by_side import train_all
from pipelines.ablation.verdict import judge
from pipelines.arms import mill_arms
from pipelines.config import MillConfig
from sharding import storage
from sharding.errors import RequestError
from sharding.packing.config import config_of
from sharding.storage import manifest
from sharding.storage.lease import Lease
from sharding.storage.manifest import Manifest
from sharding.storage.output import Output

if TYPE_CHECKING:
    from pipelines.ablation.training import Training
    from pipelines.stage import Did


def ablate(
    config: MillConfig,
    *,
    beam_args: Sequence[str] = (),
    replace: bool = False,
    on_stage: Callable[[str, str, Manifest | None, Did | None], None] = lambda arm, stage, manifest, did: None,
    on_step: Callable[[Training, int], None] = lambda training, tokens: None,
) -> Ablation:
    """Make the arms that aren't made, train the students that aren't trained, and write the verdict.

    Args:
        config: the run whose arms these are.
        beam_args: Beam options, for the arms.
        replace: make stages, and train students, again that another config has made.
        on_stage: as `mill_arms`'s.
        on_step: called with a training run and the tokens it has come to.

    Raises:
        RequestError: the request was wrong.
        MillError: a stage, a training or an evaluator failed.
    """
    section = config.ablation
    _check(config)
    if section.arms:
        mill_arms(
            config, section.arms, beam_args=beam_args, replace=replace, on_stage=on_stage, whole=section.whole_arms
        )
    outputs = {name: Output(config.output).arm(name) for name in section.arms} | section.outputs
    packed = {name: manifest.require(output, "pack") for name, output in outputs.items()}
    _check_alike(packed)
    with Lease(config.output, "ablate") as lease:
        trainings = trainings_of(config, outputs, packed)
        for training in trainings:
            _check_curve(training, replace=replace)
        train_all(trainings, section.students_at_once(gpus()), on_step)
        made = _conclude(config, outputs, packed, trainings)
        lease.check()
        _publish(config, outputs, made)
    return made


def trainings_of(config: MillConfig, outputs: Mapping[str, str], packed: Mapping[str, Manifest]) -> list[Training]:
    """The training runs of all arms and seeds; seed by seed, so that an early look compares arms.

    Raises:
        RequestError: an evaluator or a model isn't there.
    """
    from pipelines.ablation.training import Training

    section = config.ablation
    scores = config.scored or config.output
    thinking = [name for name in outputs if packed[name].counts.get("tokens_thought")]
    places = "adaptive" if "adaptive" in thinking else next(iter(thinking), None)
    # The baseline's held-out text is what all students are asked about, whichever arms are beside it.
    of_all = [manifest.digest(packed[section.baseline])]
    if places is not None and any(one.name == "own_thought" for one in section.evaluators):
        of_all.append(manifest.digest(packed[places]))
    return [
        Training(
            arm=name,
            seed=seed,
            setting=Setting(
                scores=scores,
                output=output,
                baseline=outputs[section.baseline],
                places=None if places is None else outputs[places],
            ),
            folder=local_path(curves.folder_of(config.output, name, seed)),
            identity=identity_of(section, yaml_config.to_mapping(section), [manifest.digest(packed[name]), *of_all]),
            config=section,
        )
        for seed in section.seeds
        for name, output in outputs.items()
    ]


def gpus() -> int:
    """How many this machine has that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def local_path(url: str) -> str:
    """The path of a URL on a file system.

    Raises:
        RequestError: it is on another store.
    """
    fs, path = storage.filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        raise RequestError(f"output: {url} is not on a file system, where students are trained: copy it to one")
    return str(path)


def _check(config: MillConfig) -> None:
    """What can be seen to be wrong before the first arm is made."""
    section = config.ablation
    local_path(config.output)
    packing = dict.fromkeys(section.arms, config.pack)
    for name, output in section.outputs.items():
        local_path(output)
        packing[name] = config_of(manifest.require(output, "pack"))
    for packed in packing.values():
        section.rows_of_step(packed.sequence_length)
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise RequestError(f"ablate: {error.name} is not installed; pip install 'thoughtmill[models]'") from error
    if section.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise RequestError(f"ablation.optimizer: torch {torch.__version__} has no Muon; 2.9 and later do")
    named_model(section.model)
    for one in section.evaluators:
        evaluator_class(one.name)
        if set(section.arms) - {"raw"}:  # of outputs of one's own each has a layout
            check_layout(one.name, config.layout)
    read = other_texts(section)
    asks = any(one.name in EVALUATORS and one.name not in read for one in section.evaluators)
    if asks or section.influence is not None:
        check_held_out(packing[section.baseline].validation_fraction)
    prefixes = [prefix_of(one.name) for one in section.evaluators]
    if not any(section.target.metric.startswith(f"{prefix}.") for prefix in prefixes):
        raise RequestError(
            f"ablation.target.metric: {section.target.metric!r} is of none of the evaluators: their scores begin with "
            f"{', '.join(f'{prefix}.' for prefix in prefixes)}"
        )


def _check_alike(packed: Mapping[str, Manifest]) -> None:
    """Arms are compared token by token: theirs must be the same."""
    first, *others = packed
    for what, of in {
        "tokenizer": lambda made: made.facts["tokenizer_fingerprint"],
        "pack.sequence_length": lambda made: made.config["pack"]["sequence_length"],
    }.items():
        for name in others:
            if of(packed[name]) != of(packed[first]):
                raise RequestError(
                    f"ablation.outputs: {name} has {what} {of(packed[name])}, {first} has {of(packed[first])}; "
                    "they can't be compared"
                )


def _check_curve(training: Training, *, replace: bool) -> None:
    """Refuse a student of another config, and one that is trained beyond what is asked for: it would be trained anew.

    Raises:
        RequestError: there is one, and it mustn't go.
    """
    from pipelines.ablation.training import last_point

    found = curves.read(training.folder)
    if found is None:
        return
    if found.identity != training.identity:
        otherwise = "by another config or on another corpus"
    elif found.tokens > (asked := last_point(training.config, found.sequence_length)):
        otherwise = f"on {found.tokens:,} tokens, more than the {asked:,} that ablation.tokens asks for"
    else:
        return
    if not replace:
        raise RequestError(
            f"ablation: the student of arm {training.arm}, seed {training.seed}, was trained {otherwise}: "
            "add --replace to train it anew, or name another output"
        )
    for path in Path(training.folder).iterdir():
        path.unlink()


def _conclude(
    config: MillConfig, outputs: Mapping[str, str], packed: Mapping[str, Manifest], trainings: Sequence[Training]
) -> Ablation:
    section = config.ablation
    found = [_whole(curve) for training in trainings if (curve := curves.read(training.folder))]
    by_arm: dict[str, Curve] = {curve.arm: curve for curve in found}
    return Ablation(
        model=in_words(section),
        parameters=found[0].parameters,
        baseline=section.baseline,
        arms=[
            ArmTrained(
                arm=name,
                output=output,
                packed=manifest.digest(packed[name]),
                tokens=by_arm[name].tokens,
                epochs=round(by_arm[name].epochs, 4),
                source_tokens=packed[name].counts.get("tokens_source", 0),
                thought_tokens=packed[name].counts.get("tokens_thought", 0),
            )
            for name, output in outputs.items()
        ],
        curves=found,
        scored=manifest.digest(manifest.require(config.scored or config.output, "score")),
        verdict=judge(found, section.target.metric, section.target.value, section.baseline),
        dose=dose_of(found, packed, section),
        influence=_influence(config, outputs, packed),
        rehearsal=any(made.rehearsal for made in packed.values()),
    )


def _whole(curve: Curve) -> Curve:
    assert curve.done, curve.arm
    return curve


def _influence(
    config: MillConfig, outputs: Mapping[str, str], packed: Mapping[str, Manifest]
) -> result.Influence | None:
    if config.ablation.influence is None:
        return None
    from pipelines.ablation.influence import influence_of

    asked = config.ablation.influence
    arm = asked.arm or next((name for name in outputs if packed[name].counts.get("tokens_thought")), None)
    if arm is None:
        raise RequestError("ablation.influence: no arm has thoughts; add one to ablation.arms, or leave it out")
    folder = local_path(curves.folder_of(config.output, arm, config.ablation.seeds[0]))
    return influence_of(
        arm, outputs[arm], config.scored or config.output, outputs[config.ablation.baseline], folder, config.ablation
    )


def _publish(config: MillConfig, outputs: Mapping[str, str], made: Ablation) -> None:
    """ablation.json, and the cards of the outputs that it is about."""
    from pipelines import card

    result.write(config.output, made)
    for output in {config.output, *(output for name, output in outputs.items() if name in config.ablation.arms)}:
        stages = {stage: found for stage in manifest.STAGES if (found := manifest.read(output, stage))}
        if output != config.output:
            result.write(output, made)
        if len(stages) == len(manifest.STAGES):
            card.write(output, stages)


def in_words(section: AblationConfig) -> str:
    """The student in words."""
    model = section.model
    if model.checkpoint or model.config:
        said = f"goes on from {model.checkpoint}" if model.checkpoint else f"as {model.config}, new weights"
    else:
        said = f"Llama, {model.layers} layers of width {model.width}, {model.heads} heads"
    return (
        f"{said}; {section.optimizer}, learning rate {section.learning_rate:g} ({section.schedule} after "
        f"{section.warmup_steps} steps), {section.batch_tokens:,} tokens a step"
    )
