"""Start of a run: its folder, a lock on it, and its first weights, from a checkpoint or from `last.pth`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from samri.errors import CheckpointError, InputError, OutputError
from samri.locking import exclusive
from samri.model import Checkpoint, encoder_sha256, load_checkpoint
from samri_training.train._last import LAST, RunState, find_last, read_last
from samri_training.train._processes import Processes
from samri_training.train._settings import Settings


def run_folder(settings: Settings, last: RunState | None) -> Path:
    """The folder for the results.

    One whose run ended before its first epoch did is taken again: nothing was trained that could be lost.

    Raises:
        InputError: None is named, or a resumed run is sent to another one.
        OutputError: It holds a run already, of an epoch at least.
    """
    folder = settings.save_dir
    if last is not None:
        run_path = last.path.parent
        if folder is not None and os.path.realpath(folder) != os.path.realpath(run_path):
            raise InputError(f"a resumed run continues in its own folder, {run_path}: leave out --save-dir")
        return run_path
    if folder is None:
        raise InputError("no folder for the results: pass --save-dir")
    if (folder / LAST).exists() and not _nothing_trained(folder):
        raise OutputError(f"{folder} holds a run: pass --resume {folder} to resume it, or another --save-dir")
    return folder


def _nothing_trained(folder: Path) -> bool:
    try:
        return read_last(folder).epoch == 0
    except CheckpointError:
        return False  # Whatever it is, it isn't ours to overwrite.


def starting_point(settings: Settings, last: RunState | None) -> Checkpoint:
    """The model as it is before the first step.

    Raises:
        CheckpointError: It can't be read, or a resumed run is of another model than the checkpoint that was named.
        InputError: No checkpoint is named.
    """
    if last is not None:
        checkpoint = load_checkpoint(last.path)
        if settings.checkpoint != last.settings.checkpoint and settings.checkpoint is not None:
            _require_same_model(checkpoint, load_checkpoint(settings.checkpoint, settings.base))
    elif settings.checkpoint is not None:
        checkpoint = load_checkpoint(settings.checkpoint, settings.base)
    else:
        raise InputError("no checkpoint to start from: pass --checkpoint")
    if settings.train_scores and checkpoint.architecture.mask_tokens < 2:
        raise CheckpointError(f"{checkpoint.path}: has only one mask output, so --train-scores can't be used")
    return checkpoint


def _require_same_model(run: Checkpoint, named: Checkpoint) -> None:
    way_out = "leave out --checkpoint to resume, or start a new run"
    if named.architecture != run.architecture:
        raise CheckpointError(
            f"{run.path} is a run of a {run.architecture.backbone} model of another architecture than {named.path} "
            f"({named.architecture.backbone}): {way_out}"
        )
    if encoder_sha256(named.sam) != encoder_sha256(run.sam):
        raise CheckpointError(f"{run.path} is a run with another image encoder than that of {named.path}: {way_out}")


LOCK = ".samri-train.lock"


@contextlib.contextmanager
def held_folder(settings: Settings, resume: Path | None, processes: Processes) -> Iterator[None]:
    """Hold the run's folder for the processes of this run; the first of them does.

    Raises:
        InputError: There is nothing to resume.
        OutputError: Another run is at work there, or the folder can't be made.
    """
    with contextlib.ExitStack() as stack:

        def hold() -> None:
            folder = settings.save_dir if resume is None else find_last(resume).parent
            if folder is not None and processes.first:  # Without a folder, the run itself says what is missing.
                stack.enter_context(_held(folder))

        processes.agree(hold)
        yield


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # Deepest first.
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    busy = f"another samri-train is at work in {folder}: wait until it has ended, or name another --save-dir"
    try:
        with exclusive(folder / LOCK, busy):
            yield
    finally:
        for place in made:  # A run that ended before its first file leaves no folder behind.
            with contextlib.suppress(OSError):
                place.rmdir()
