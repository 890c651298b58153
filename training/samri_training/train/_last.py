"""`last.pth`: the full state of a run, to resume it exactly; and `best.pth`, weights alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from segment_anything.modeling import Sam

from samri.errors import CheckpointError, InputError
from samri.model import read_state_dict
from samri.staging import staged_file
from samri_training.train._last_checks import RunData, check_fits, checked_data, checked_history, checked_settings
from samri_training.train._settings import CURVE, Settings
from samri_training.train._step import Training

FORMAT = "samri-train"
FORMAT_VERSION = 3

LAST, BEST = "last.pth", "best.pth"


@dataclasses.dataclass(frozen=True)
class RunState:
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


def read_last(resume: Path) -> RunState:
    """Read and check a `last.pth`, with torch's `weights_only`.

    Raises:
        InputError: There is none.
        CheckpointError: It is damaged, or a checkpoint without the state of a run; the text names the run's best.pth
            where that is whole.
    """
    path = find_last(resume)
    try:
        return _read_last(path)
    except CheckpointError as error:
        best = path.with_name(BEST)
        if best == path or not _is_whole(best):
            raise
        raise CheckpointError(
            f"{error}; {best} is whole: start a new run from it with --checkpoint {best} and another --save-dir"
        ) from error


def _is_whole(best: Path) -> bool:
    try:
        read_state_dict(best)
    except CheckpointError:
        return False
    return True


def _read_last(path: Path) -> RunState:
    read_state_dict(path)  # Says in plain words what is wrong with a damaged or foreign file.
    # A file of safetensors has weights alone.
    state = None if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: holds no run to resume, only weights: start a new run from it with --checkpoint"
        )
    version = state.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: written by another version of samri-train: resume with that one")
    return RunState(
        path=path,
        epoch=state.get("epoch", -1),
        history=checked_history(state.get("history"), state.get("epoch"), path),
        settings=checked_settings(state.get("settings"), path),
        data=checked_data(state.get("data"), path),
        state=state,
    )


def check_same_curve(last: RunState, settings: Settings) -> None:
    """Settings that shape the training curve can't change in a resumed run.

    Raises:
        InputError: A setting differs; the text says which.
    """
    for name in CURVE:
        before, now = getattr(last.settings, name), getattr(settings, name)
        if before != now and name not in ("batch_size", "accumulate"):
            raise InputError(
                f"{last.path} was trained with {name} {before}, not {now}: leave it out to resume, {_new_run(last)}"
            )
    if settings.scheduler != "constant" and settings.epochs != last.settings.epochs:
        raise InputError(
            f"{last.path} follows a {settings.scheduler} over {last.settings.epochs} epochs, which can't become "
            f"{settings.epochs}: leave --epochs out to resume, {_new_run(last)}"
        )


def _new_run(last: RunState) -> str:
    if last.epoch == 0:
        return "or begin anew with --save-dir in place of --resume"
    return f"or start a new run from {BEST} with --checkpoint"


def check_same_data(last: RunState, settings: Settings, data: RunData) -> None:
    """The data and the number of slices per step are those that the run began with.

    Raises:
        InputError: They aren't.
    """
    before = last.data
    if data.embedding_id != before.embedding_id:
        raise InputError(f"{last.path} was trained on another encoder's embeddings: pass its own store")
    if data.slices_sha256 != before.slices_sha256:
        raise InputError(f"{last.path} {_other_slices(last, settings, data)}, {_new_run(last)}")
    validated = before.validation_slices_sha256, data.validation_slices_sha256
    if None not in validated and len(set(validated)) > 1:
        raise InputError(
            f"{last.path} was validated on other slices, so its epochs can't be compared: restore those slices, "
            f"{_new_run(last)}"
        )
    if data.samples_per_step != before.samples_per_step:
        raise InputError(
            f"{last.path} took {before.samples_per_step} slices per step, and processes x --batch-size x "
            f"--accumulate make {data.samples_per_step} now: choose them so that the product is the same"
        )


def _other_slices(last: RunState, settings: Settings, data: RunData) -> str:
    """In what the training slices differ, and what to do about it."""
    before, now = last.settings.val_every, settings.val_every
    if not before and now and data.samples < last.data.samples:
        return (
            f"was trained on {last.data.samples} slices without validation, and --val-every {now} would hold some of "
            "them out: leave it out, or give other slices with --val-embedding-dir"
        )
    if before and not now and data.samples > last.data.samples:
        return "holds slices out for validation, and --val-every 0 would train on them too: leave it out"
    if data.samples != last.data.samples:
        return f"was trained on {last.data.samples} slices, and there are {data.samples} now: restore the data"
    return f"was trained on {last.data.samples} other slices than these, or in another order: restore the data"


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


def restore(training: Training, last: RunState) -> None:
    """Put optimiser, moving average, loss scale, schedule and torch's generator where they stood.

    Raises:
        CheckpointError: One of them is damaged, or of another model.
    """
    state = last.state
    check_fits(state, training, last.path)
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
    with staged_file(path) as stage, stage.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(content, cast(IO[bytes], watched))
        except RuntimeError as error:
            if watched.failure is None:
                raise
            raise watched.failure from error


class _Watched:
    """A file that remembers why it could not be written: torch's zip writer raises a RuntimeError of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write to the file, and remember an OSError."""
        with self._remembered():
            return self._file.write(content)

    def flush(self) -> None:
        """Flush the file, and remember an OSError."""
        with self._remembered():
            self._file.flush()

    @contextlib.contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            raise
