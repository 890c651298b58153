"""One process per run's folder: a job that is queued twice must not mix its files with those of the first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from samri.errors import OutputError
from samri.locking import exclusive
from samri_training.train._last import find_last
from samri_training.train._processes import Processes
from samri_training.train._settings import Settings

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
