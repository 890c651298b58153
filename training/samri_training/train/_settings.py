"""Every setting of a training run, in one place: options, YAML keys and `args.json` are made from it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from samri.errors import InputError
from samri.preprocessing import ProfileName
from samri_training.devices import is_torch_device

TrainingPrompts = Literal["box", "point", "mixed", "alternate"]
Amp = Literal["off", "bf16", "fp16"]
Scheduler = Literal["constant", "cosine"]
Loss = Literal["dice-focal", "balanced"]
Targets = Literal["area", "coverage", "nearest-exact"]
LabelsPerSlice: TypeAlias = int | Literal["all"]
BadSteps = Literal["skip", "stop"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Help text of a setting, and its bounds: a number above `above`, at least `least`."""

    text: str
    above: float | None = None
    least: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a training run. `Settings.of` makes them and checks types and bounds."""

    embedding_dir: Annotated[
        Path | None,
        Setting("Embedding store or published cache to train on, or a folder with training and validation stores."),
    ] = None
    val_embedding_dir: Annotated[
        Path | None, Setting("Embedding store or published cache to validate on, rather than that of --embedding-dir.")
    ] = None
    val_fraction: Annotated[
        float, Setting("Fraction of the cases held out for validation if there is no validation store.", above=0)
    ] = 0.1
    checkpoint: Annotated[
        Path | None, Setting("Checkpoint to fine-tune: the SAM, SAMRI or MedSAM whose encoder made the embeddings.")
    ] = None
    base: Annotated[Path | None, Setting("Full checkpoint from which a decoder-only --checkpoint was fine-tuned.")] = (
        None
    )
    profile: Annotated[ProfileName | None, Setting("Preprocessing of a published cache; a store has its own.")] = None
    save_dir: Annotated[Path | None, Setting("Folder for best.pth, last.pth, logs and curves; created if missing.")] = (
        None
    )
    epochs: Annotated[int, Setting("Number of passes over the slices.", least=1)] = 20
    batch_size: Annotated[int, Setting("Number of slices per batch and process.", least=1)] = 8
    accumulate: Annotated[
        int, Setting("Number of batches per process whose gradients are added up for each step.", least=1)
    ] = 1
    lr: Annotated[float, Setting("Learning rate of AdamW.", above=0)] = 1e-4
    weight_decay: Annotated[float, Setting("Weight decay of AdamW.", least=0)] = 0.1
    scheduler: Annotated[Scheduler, Setting("Schedule of the learning rate after the warm-up.")] = "constant"
    warmup_steps: Annotated[int, Setting("Number of steps in which the learning rate rises to --lr.", least=0)] = 0
    min_lr: Annotated[float, Setting("Learning rate at the end of the cosine schedule.", least=0)] = 0.0
    clip_norm: Annotated[float, Setting("Maximum norm of the gradient of a step; 0 for no limit.", least=0)] = 1.0
    prompts: Annotated[
        TrainingPrompts,
        Setting("Prompts for the decoder; mixed: a box with a point; alternate: boxes and points in turn."),
    ] = "box"
    jitter: Annotated[bool, Setting("Move the sides of boxes at random by up to 10 px of 256, also in validation.")] = (
        True
    )
    labels_per_slice: Annotated[
        LabelsPerSlice,
        Setting("Number of labels of each slice per epoch, drawn at random; or all.", least=1),
    ] = 1
    connected_parts: Annotated[
        int,
        Setting(
            "Minimum number of pixels of a connected part of a label, each of which becomes a target of its own; 0 for "
            "whole labels.",
            least=0,
        ),
    ] = 0
    targets: Annotated[Targets, Setting("Method of reducing masks to the resolution of the decoder.")] = "area"
    loss: Annotated[
        Loss,
        Setting(
            "Loss of a mask; dice-focal: Dice + 10 focal, as published; balanced: Dice and a cross entropy balanced "
            "around the target."
        ),
    ] = "dice-focal"
    train_scores: Annotated[
        bool, Setting("Also train the candidate masks and the score head, so that scores estimate IoU.")
    ] = False
    ema: Annotated[
        float, Setting("Decay of a moving average of the weights, which is saved in best.pth; 0 for none.", least=0)
    ] = 0.0
    amp: Annotated[Amp, Setting("Mixed precision; --amp alone means bf16.")] = "off"
    device: Annotated[str, Setting("PyTorch device: auto, cpu, cuda, cuda:1 or mps.")] = "auto"
    seed: Annotated[int, Setting("Random seed of the order of slices, the labels and the prompts.", least=0)] = 0
    val_every: Annotated[
        int,
        Setting(
            "Number of epochs between validations; the last epoch is always validated; 0 for no validation.", least=0
        ),
    ] = 1
    allow_shared_cases: Annotated[bool, Setting("Train even if cases are in the validation slices too.")] = False
    num_workers: Annotated[
        int, Setting("Number of processes that load batches ahead; 0 loads them in the training process.", least=0)
    ] = 0
    deterministic: Annotated[bool, Setting("Use deterministic GPU kernels only, which are slower.")] = False
    bad_steps: Annotated[
        BadSteps, Setting("Reaction to a loss or gradient that is not finite: skip the step, or stop.")
    ] = "skip"
    tensorboard: Annotated[bool, Setting("Also write TensorBoard events to --save-dir.")] = False

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str) -> Settings:
        """Settings from plain values as YAML and JSON hold them; what is not named keeps its default.

        Args:
            values: By name, with dashes or underscores.
            source: The file's name, or `command line`, for messages.

        Raises:
            InputError: An unknown name, or a value of the wrong type or out of bounds.
        """
        fields = described()
        read: dict[str, Any] = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(fields)}"
                raise InputError(f"{source}: unknown setting {key!r}{hint}")
            kind, setting = fields[name]
            read[name] = _converted(kind, value, f"{source}: {name}")
            _check_bounds(name, setting, read[name], source)
        settings = cls(**read)
        if not is_torch_device(settings.device):
            raise InputError(f"{source}: device is auto, cpu, cuda, cuda:1 or mps, not {settings.device!r}")
        if not settings.val_fraction < 1:
            raise InputError(f"{source}: val_fraction must be a fraction below 1, not {settings.val_fraction:g}")
        if settings.targets == "coverage" and settings.loss != "balanced":
            raise InputError(
                f"{source}: targets coverage needs loss balanced: the focal loss drives fractions to 0 or 1"
            )
        if not settings.ema < 1:
            raise InputError(f"{source}: ema is a decay below 1, such as 0.999, not {settings.ema:g}")
        return settings

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields; paths in full, since a run may be resumed from elsewhere."""
        values = dataclasses.asdict(self)
        return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}


def described() -> dict[str, tuple[Any, Setting]]:
    """Type and help text of each setting."""
    return {name: get_args(hint) for name, hint in get_type_hints(Settings, include_extras=True).items()}


CURVE = (
    "accumulate", "batch_size", "lr", "weight_decay", "scheduler", "warmup_steps", "min_lr", "clip_norm", "prompts",
    "jitter", "labels_per_slice", "connected_parts", "targets", "loss", "train_scores", "ema", "amp", "seed",
    "val_fraction",
)  # fmt: skip
"""Settings that a resumed run must keep; of batch_size and accumulate, their product."""


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, or in a shipped one when only its name is given, such as `published`.

    Raises:
        InputError: No such file, not YAML, or no mapping of names to values.
    """
    import yaml

    config_file = _shipped(path) if not path.exists() else path
    if not config_file.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise InputError(f"{path}: no such config file; the shipped ones are {names}")
    try:
        values = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a config file is a list of `name: value` lines")
    return values


SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def _shipped(path: Path) -> Path:
    return SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml" if path.parent == Path() else path


def _converted(kind: Any, value: Any, what: str) -> Any:
    """`value` as a field's type has it, without guessing: a string is no number, except YAML's `1e-4`."""
    options = get_args(kind) if _is_union(kind) else (kind,)
    if value is None and NoneType in options:
        return None
    if isinstance(value, str) and any(value in get_args(option) for option in options):
        return value
    kind = options[0]
    if get_origin(kind) is Literal:
        # YAML 1.1 reads a bare `off` as false.
        value = "off" if value is False and "off" in get_args(kind) else value
        if value not in get_args(kind):
            raise InputError(f"{what} is one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    if Path in options and isinstance(value, (str, Path)) and str(value):
        return Path(value)
    if str in options and isinstance(value, str):
        return value
    if bool in options and isinstance(value, bool):
        return value
    if int in options and isinstance(value, int) and not isinstance(value, bool):
        return value
    if float in options and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None:
            return number
    named = {Path: "a path", str: "a name", bool: "true or false", int: "a whole number", float: "a number"}
    choices = "".join(f" or {', '.join(get_args(option))}" for option in options[1:] if get_args(option))
    raise InputError(f"{what} is {named[options[0]]}{choices}, not {value!r}")


def _is_union(kind: Any) -> bool:
    return get_origin(kind) is Union or type(kind).__name__ == "UnionType"


def _number(value: float | str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_bounds(name: str, setting: Setting, value: Any, source: str) -> None:
    if setting.above is not None and not value > setting.above:
        raise InputError(f"{source}: {name} must be above {setting.above:g}, not {value}")
    if setting.least is not None and not isinstance(value, str) and value < setting.least:
        raise InputError(f"{source}: {name} must be at least {setting.least:g}, not {value}")
