"""`last.pth`: all that a run needs to go on as if it had never stopped; and `best.pth`, weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam

from samri.errors import CheckpointError, InputError
from samri.model import read_state_dict
from samri.staging import staged_file
from samri_training.train._settings import CURVE, Settings
from samri_training.train._step import Training

FORMAT = "samri-train"
FORMAT_VERSION = 1

LAST, BEST = "last.pth", "best.pth"


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run learns from, as far as its curve depends on it."""

    samples: int
    """Training slices."""
    samples_per_step: int
    """Of all processes together."""
    embedding_id: str


@dataclasses.dataclass(frozen=True)
class Last:
    """What `last.pth` holds beside the weights and the optimiser's tensors."""

    path: Path
    epoch: int
    """The last one that was finished."""
    history: list[dict[str, Any]]
    """An entry an epoch, as in `logs.json`."""
    settings: Settings
    data: RunData
    state: Mapping[str, Any]
    """The file's content."""


def find_last(resume: Path) -> Path:
    """The `last.pth` that `--resume` means: that file, or the run's folder, with or without its slash.

    Raises:
        InputError: There is none.
    """
    path = resume / LAST if resume.is_dir() else resume
    if not path.is_file():
        what = f"the folder has no {LAST}" if resume.is_dir() else "no such file or folder"
        raise InputError(f"cannot resume from {resume}: {what}")
    return path


def read_last(resume: Path) -> Last:
    """Read and check a `last.pth`, with torch's `weights_only`.

    Raises:
        InputError: There is none.
        CheckpointError: It is damaged, or a checkpoint without the state of a run.
    """
    path = find_last(resume)
    read_state_dict(path)  # Says in plain words what is wrong with a damaged or foreign file.
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: holds no state of a run to go on with, only weights: start a new run from it with --checkpoint"
        )
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: written by another version of samri-train: go on with that one")
    return Last(
        path=path,
        epoch=state["epoch"],
        history=state["history"],
        settings=Settings.of(state["settings"], str(path)),
        data=RunData(**state["data"]),
        state=state,
    )


def check_same_curve(last: Last, settings: Settings) -> None:
    """A resumed run goes on with the curve that was begun, so what shapes it can't change.

    Raises:
        InputError: A setting differs; the text says which.
    """
    for name in CURVE:
        before, now = getattr(last.settings, name), getattr(settings, name)
        if before != now and name not in ("batch_size", "accumulate"):
            raise InputError(
                f"{last.path} was trained with {name} {before}, not {now}: leave it out to resume, "
                f"or start a new run from {BEST} with --checkpoint"
            )
    if settings.scheduler != "constant" and settings.epochs != last.settings.epochs:
        raise InputError(
            f"{last.path} follows a {settings.scheduler} over {last.settings.epochs} epochs, which can't become "
            f"{settings.epochs}: leave --epochs out to resume, or start a new run from {BEST} with --checkpoint"
        )


def check_same_data(last: Last, data: RunData) -> None:
    """The data and the number of slices a step are those that the run began with.

    Raises:
        InputError: They aren't.
    """
    if data.embedding_id != last.data.embedding_id:
        raise InputError(f"{last.path} was trained on embeddings of another encoder than these: give its own store")
    if data.samples != last.data.samples:
        raise InputError(
            f"{last.path} was trained on {last.data.samples} slices, and there are {data.samples} now: "
            f"restore the data, or start a new run from {BEST} with --checkpoint"
        )
    if data.samples_per_step != last.data.samples_per_step:
        raise InputError(
            f"{last.path} took {last.data.samples_per_step} slices a step, and processes x --batch-size x "
            f"--accumulate make {data.samples_per_step} now: choose them so that the product is the same"
        )


def save_last(
    folder: Path, sam: Sam, training: Training, epoch: int, history: list[dict[str, Any]], data: RunData
) -> None:
    """Write `last.pth` beside itself, then rename: a kill at any moment leaves the old one or the new one.

    Raises:
        OutputError: The disk is full or the folder can't be written.
    """
    average = training.average
    state = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": weights(sam),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": {"step": training.step_number, "total_steps": training.total_steps},
        "loss_scale": dataclasses.asdict(training.loss_scale),
        "bad_in_a_row": training.bad_in_a_row,
        "ema": None if average is None else {"weights": average.weights, "updates": average.updates},
        "rng": torch.get_rng_state(),
        "epoch": epoch,
        "history": history,
        "settings": training.settings.to_json(),
        "data": dataclasses.asdict(data),
    }
    _save(state, folder / LAST)


def restore(training: Training, last: Last) -> None:
    """Put optimiser, moving average, loss scale, schedule and torch's generator where they stood."""
    state = last.state
    training.optimizer.load_state_dict(state["optimizer"])
    training.step_number = state["scheduler"]["step"]
    training.loss_scale = dataclasses.replace(training.loss_scale, **state["loss_scale"])
    training.bad_in_a_row = state["bad_in_a_row"]
    if training.average is not None:
        training.average.load(state["ema"]["weights"], state["ema"]["updates"])
    torch.set_rng_state(state["rng"])


def save_best(folder: Path, sam: Sam) -> None:
    """Write the weights alone, under SAM's own names: segment-anything and `samri-export` open this file.

    Raises:
        OutputError: The disk is full or the folder can't be written.
    """
    _save(weights(sam), folder / BEST)


def weights(sam: Sam) -> dict[str, torch.Tensor]:
    """A full state dict on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sam.state_dict().items()}


def _save(content: Any, path: Path) -> None:
    # Through a file of our own: then a full disk is an OSError, and not torch's own RuntimeError.
    with staged_file(path) as stage, stage.open("wb") as file:
        torch.save(content, file)
