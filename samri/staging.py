"""Write beside, then rename: a reader never sees half a file, and a failed run leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from samri.errors import OutputError


@contextlib.contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on any exception.

    Raises:
        OutputError: The folder can't be written or the disk is full.
    """
    path = Path(path)
    with _as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            # The suffix stays, since writers choose their format by it (`.nii.gz`).
            yield stage / path.name
            (stage / path.name).replace(path)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def staged_files(folder: str | Path) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`; on success every file in it is renamed into `folder`, else none is.

    `folder` is created when missing, and removed again if it was and nothing came of it.

    Raises:
        OutputError: The folder can't be written, is a file, or the disk is full.
    """
    folder = Path(folder)
    with _as_output_error(folder):
        created = _make_folders(folder)
        stage = None
        try:
            stage = Path(tempfile.mkdtemp(prefix=".samri-", dir=folder))
            yield stage
            for file in sorted(stage.iterdir()):
                file.replace(folder / file.name)
            created = []
        finally:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)
            for made in created:
                with contextlib.suppress(OSError):
                    made.rmdir()


@contextlib.contextmanager
def staged_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` as a whole on success.

    Raises:
        OutputError: `path` exists and `overwrite` is false, it can't be written, or the disk is full.
    """
    path = Path(path)
    with _as_output_error(path):
        _refuse_existing(path, overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            content = stage / path.name
            content.mkdir()
            yield content
            _refuse_existing(path, overwrite)
            _swap(content, path, stage / "replaced")
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists: name another folder, or pass --overwrite to replace it")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder: name another output")


def _swap(new: Path, path: Path, aside: Path) -> None:
    """Put `new` at `path`; what was there goes to `aside`, and back again if the second step fails."""
    if not path.exists():
        new.replace(path)
        return
    path.replace(aside)
    try:
        new.replace(path)
    except BaseException:
        aside.replace(path)
        raise


def _make_folders(folder: Path) -> list[Path]:
    """Create `folder` and its missing parents; returns those that were made, deepest first."""
    missing = []
    probe = folder
    while not probe.exists():
        missing.append(probe)
        probe = probe.parent
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        raise OutputError(f"cannot write {path}: {reason}") from error
