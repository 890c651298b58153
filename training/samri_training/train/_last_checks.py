"""Validation of `last.pth`, entry by entry: an error names the damaged entry before anything is used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samri.errors import CheckpointError, InputError
from samri_training.train._settings import Settings
from samri_training.train._step import LossScale, Training

_REMEDY = "the file is damaged: copy it again, or start a new run"
_PLAIN = (str, int, float, bool, type(None))


@dataclasses.dataclass(frozen=True)
class RunData:
    """The checkpoint and data of a run, as far as its curve depends on them."""

    samples: int
    """Training slices."""
    samples_per_step: int
    """Slices of all processes together."""
    embedding_id: str
    slices_sha256: str
    """SHA-256 of the names of the training slices."""
    validation_slices_sha256: str | None
    """The same of the validation slices; None when there are none."""
    checkpoint_sha256: str
    """SHA-256 of the checkpoint that the run started from; a resumed run no longer needs that file."""


def checked_settings(values: Any, path: Path) -> Settings:
    """The settings of a run.

    Raises:
        CheckpointError: They aren't plain values, or one of them is no setting of this version.
    """
    values = _mapping(values, "settings", path)
    for name, value in values.items():
        _require(isinstance(value, _PLAIN), f"settings.{name}", path)
    try:
        return Settings.of(values, str(path))
    except InputError as error:
        raise CheckpointError(f"{error} ({_REMEDY})") from error


def checked_data(values: Any, path: Path) -> RunData:
    """What a run began with.

    Raises:
        CheckpointError: An entry is missing, of the wrong type, or unknown.
    """
    values = _mapping(values, "data", path)
    _require_keys(values, {field.name for field in dataclasses.fields(RunData)}, "data", path)
    for name in ("samples", "samples_per_step"):
        _require(_is_count(values[name]) and values[name] > 0, f"data.{name}", path)
    for name in ("embedding_id", "slices_sha256", "checkpoint_sha256"):
        _require(isinstance(values[name], str), f"data.{name}", path)
    validated = values["validation_slices_sha256"]
    _require(validated is None or isinstance(validated, str), "data.validation_slices_sha256", path)
    return RunData(**values)


def checked_history(history: Any, epoch: Any, path: Path) -> list[dict[str, Any]]:
    """The entries of `logs.json`, an entry per epoch up to the last one.

    Raises:
        CheckpointError: They aren't plain numbers and texts, or don't lead to `epoch`.
    """
    _require(_is_count(epoch), "epoch", path)
    _require(isinstance(history, list) and len(history) > 0, "history", path)
    for place, entry in enumerate(history):
        what = f"history[{place}]"
        entry = _mapping(entry, what, path)
        _require(_is_count(entry.get("epoch")), f"{what}.epoch", path)
        for name, value in entry.items():
            types = (str,) if name == "first_thin" else (int, float, type(None))
            _require(isinstance(value, types) and not isinstance(value, bool), f"{what}.{name}", path)
        if "val_dice" in entry:
            _require(_is_number(entry["val_dice"]) and 0 <= entry["val_dice"] <= 1, f"{what}.val_dice", path)
        if entry["epoch"] > 0:
            _require(_is_number(entry.get("train_loss")), f"{what}.train_loss", path)
    epochs = [entry["epoch"] for entry in history]
    _require(epochs == list(range(epochs[0], epoch + 1)) and epochs[0] in (0, 1), "history", path)
    return [dict(entry) for entry in history]


def check_fits(state: Mapping[str, Any], training: Training, path: Path) -> None:
    """Make sure that optimiser, moving average, loss scale, schedule and generator are those of this model and run.

    Raises:
        CheckpointError: One of them is missing or damaged.
    """
    scheduler = _mapping(state.get("scheduler"), "scheduler", path)
    _require(_is_count(scheduler.get("step")), "scheduler.step", path)
    _check_scale(_mapping(state.get("loss_scale"), "loss_scale", path), path)
    _require(_is_count(state.get("bad_in_a_row")), "bad_in_a_row", path)
    rng, now = state.get("rng"), torch.get_rng_state()
    _require(isinstance(rng, Tensor) and (rng.dtype, rng.shape) == (now.dtype, now.shape), "rng", path)
    if training.average is not None:
        average = _mapping(state.get("ema"), "ema", path)
        _require(_is_count(average.get("updates")), "ema.updates", path)
        weights = _mapping(average.get("weights"), "ema.weights", path)
        for name, parameter in training.parameters.items():
            _require(_is_like(weights.get(name), parameter), f"ema.weights.{name}", path)
    _check_optimizer(_mapping(state.get("optimizer"), "optimizer", path), training, path)


def _check_scale(scale: Mapping[str, Any], path: Path) -> None:
    _require_keys(scale, {field.name for field in dataclasses.fields(LossScale)}, "loss_scale", path)
    _require(_is_number(scale["scale"]) and scale["scale"] > 0, "loss_scale.scale", path)
    _require(isinstance(scale["dynamic"], bool), "loss_scale.dynamic", path)
    _require(_is_count(scale["calm"]), "loss_scale.calm", path)


def _check_optimizer(saved: Mapping[str, Any], training: Training, path: Path) -> None:
    groups: Any = saved.get("param_groups")
    _require(isinstance(groups, list) and len(groups) == 1, "optimizer.param_groups", path)
    (own_group,) = training.optimizer.state_dict()["param_groups"]
    group = _mapping(groups[0], "optimizer.param_groups[0]", path)
    for name, value in own_group.items():
        there: Any = group.get(name)
        # As text, since a tensor among them is neither equal nor unequal.
        same = _is_number(there) and there >= 0 if name == "lr" else repr(there) == repr(value)
        _require(bool(same), f"optimizer.param_groups[0].{name}", path)
    states: Mapping[Any, Any] = _mapping(saved.get("state"), "optimizer.state", path)
    parameters = list(training.parameters.values())
    # Before the first step that moved, there is none.
    _require(set(states) in (set(), set(range(len(parameters)))), "optimizer.state", path)
    for number, moments in states.items():
        what = f"optimizer.state[{number}]"
        moments = _mapping(moments, what, path)
        _require_keys(moments, {"step", "exp_avg", "exp_avg_sq"}, what, path)
        for name in ("exp_avg", "exp_avg_sq"):
            _require(_is_like(moments[name], parameters[number]), f"{what}.{name}", path)
        step = moments["step"]
        scalar = isinstance(step, Tensor) and step.ndim == 0 and step.is_floating_point()
        _require(scalar and bool(step >= 0) and bool(step == step.round()), f"{what}.step", path)


def _require(holds: bool, what: str, path: Path) -> None:
    if not holds:
        raise CheckpointError(f"{path}: the entry {what} is not what samri-train writes: {_REMEDY}")


def _require_keys(values: Mapping[str, Any], keys: set[str], what: str, path: Path) -> None:
    _require(set(values) == keys, what, path)


def _mapping(value: Any, what: str, path: Path) -> Mapping[str, Any]:
    _require(isinstance(value, Mapping), what, path)
    checked: Mapping[str, Any] = value
    return checked


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_like(value: Any, parameter: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
        and value.shape == parameter.shape
        and bool(torch.isfinite(value).all())
    )
