"""Write beside, then rename: a reader never sees half a file, and a failed run leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from samri.errors import OutputError


@contextlib.contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on any exception.

    Missing folders are made, and removed again on an exception.

    Raises:
        OutputError: The folder can't be written or the disk is full.
    """
    path = Path(path)
    with _as_output_error(path), _made_folders(path.parent), _hidden_folder(path.parent, path.name) as stage:
        # The suffix stays, since writers choose their format by it (`.nii.gz`).
        yield stage / path.name
        (stage / path.name).replace(path)


@contextlib.contextmanager
def staged_files(folder: str | Path, *, obsolete: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`; on success every file in it is renamed into `folder`, else none is.

    `folder` is created when missing, and removed again if it was and nothing came of it. Files that were replaced
    before a later one failed are put back.

    Args:
        folder: Where the files go.
        obsolete: Names of files in `folder` that are removed on success, unless they are written anew.

    Raises:
        OutputError: The folder can't be written, is a file, holds a folder by the name of a file, or the disk is full.
    """
    folder = Path(folder)
    with _as_output_error(folder), _made_folders(folder), _hidden_folder(folder, "samri") as stage:
        new, aside = stage / "new", stage / "replaced"
        new.mkdir()
        aside.mkdir()
        yield new
        names = sorted(file.name for file in new.iterdir())
        stale = [name for name in obsolete if name not in names and not _is_real_folder(folder / name)]
        refuse_folders_in_the_way(folder, names)
        try:
            for name in (*names, *stale):
                if os.path.lexists(folder / name):
                    (folder / name).replace(aside / name)
                if name in names:
                    (new / name).replace(folder / name)
        except BaseException:
            # What the disk says, rather than a list of steps done: a signal may come between any two of them.
            for name in names:
                if not os.path.lexists(new / name):
                    (folder / name).unlink()
            for file in aside.iterdir():
                file.replace(folder / file.name)
            raise


def refuse_folders_in_the_way(folder: Path, names: Iterable[str]) -> None:
    """Raise before anything is done if a file of `names` can't be put into `folder`, since a folder is called so.

    Raises:
        OutputError: It names the folder.
    """
    for name in names:
        if _is_real_folder(folder / name):
            raise OutputError(f"cannot write {folder / name}: it is a folder: rename it, or name another output")


@contextlib.contextmanager
def staged_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` as a whole on success.

    A link to a folder stays a link: the folder that it leads to is the one replaced. Missing parents are made, and
    removed again on an exception.

    Raises:
        OutputError: `path` exists and `overwrite` is false, is a link to nothing, it can't be written, or the disk is
            full.
    """
    path = Path(path)
    with _as_output_error(path):
        _refuse_existing(path, overwrite)
        target = path.resolve() if path.is_symlink() else path
        with _made_folders(target.parent), _hidden_folder(target.parent, target.name) as stage:
            content = stage / target.name
            content.mkdir()
            yield content
            _refuse_existing(path, overwrite)
            _swap(content, target, stage / "replaced")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path} is a link that leads nowhere: remove it, or name another folder")
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


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


@contextlib.contextmanager
def _made_folders(folder: Path) -> Iterator[None]:
    """Create `folder` and its missing parents; on any exception remove those that were made, unless they hold files."""
    missing = []
    for place in (folder, *folder.parents):  # Deepest first.
        if os.path.lexists(place):
            break
        missing.append(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


@contextlib.contextmanager
def _hidden_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, called after `name`, that is gone afterwards."""
    stage = Path(tempfile.mkdtemp(prefix=f".{name[:40]}.", dir=parent))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        raise OutputError(f"cannot write {path}: {reason}") from error
