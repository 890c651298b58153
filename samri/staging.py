"""Write beside, then rename: a reader never sees half a file, and a failed run leaves nothing behind.

A process that is killed leaves a hidden folder, `.samri-stage.NAME.RANDOM`, in the folder that it wrote to. The next
writer there puts back what was moved aside, and removes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from samri._exchange import exchange
from samri._stage import Stage, clean, stage_beside
from samri.errors import OutputError
from samri.locking import exclusive


@contextlib.contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on any exception.

    Missing folders are made, and removed again on an exception.

    Raises:
        OutputError: The folder can't be written, `path` is a device or a pipe, or the disk is full.
    """
    path = Path(path)
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file() or path.is_dir()):
        raise OutputError(f"cannot write {path}: it is not a regular file: name another output")
    with as_output_error(path), _made_folders(path.parent), stage_beside(path.parent, path.name) as stage:
        # The suffix stays, since writers choose their format by it (`.nii.gz`).
        yield stage.new / path.name
        (stage.new / path.name).replace(path)


@contextlib.contextmanager
def staged_files(folder: str | Path, *, obsolete: Iterable[str] = (), last: str | None = None) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`; on success every file in it is renamed into `folder`, else none is.

    `folder` is created when missing, and removed again if it was and nothing came of it. Files that were replaced
    before a later one failed are put back; after a kill, by the next writer.

    Args:
        folder: Where the files go.
        obsolete: Names of files in `folder` that are removed on success, unless they are written anew.
        last: Name of the file that vouches for the others: an earlier one goes first, the new one comes last.

    Raises:
        OutputError: The folder can't be written, is a file, holds a folder by the name of a file, or the disk is full.
    """
    folder = Path(folder)
    with as_output_error(folder), _made_folders(folder), stage_beside(folder, "files") as stage:
        yield stage.new
        names = sorted((file.name for file in stage.new.iterdir()), key=lambda name: (name == last, name))
        stale = [name for name in obsolete if name not in names and not _is_real_folder(folder / name)]
        refuse_folders_in_the_way(folder, names)
        stage.plan(names)
        for name in (*reversed(names), *stale):
            if os.path.lexists(folder / name):
                (folder / name).replace(stage.replaced / name)
        for name in names:
            (stage.new / name).replace(folder / name)


def refuse_folders_in_the_way(folder: Path, names: Iterable[str]) -> None:
    """Raise before anything is done if a file of `names` can't be put into `folder`, since a folder is called so.

    Raises:
        OutputError: It names the folder.
    """
    for name in names:
        if _is_real_folder(folder / name):
            raise OutputError(f"cannot write {folder / name}: it is a folder: rename it, or name another output")


@contextlib.contextmanager
def staged_folder(
    path: str | Path, *, overwrite: bool = False, check: Callable[[Path], None] = lambda path: None
) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` as a whole on success.

    A link to a folder stays a link: the folder that it leads to is the one replaced. Missing parents are made, and
    removed again on an exception. At any moment `path` is the old folder or the new one, on Linux; elsewhere a kill
    between two renames leaves none, until the next writer puts the old one back.

    Args:
        path: The folder to make.
        overwrite: Replace a folder that holds something.
        check: Given such a folder, raises OutputError unless it may be replaced: the maker of a kind of folder
            replaces folders of that kind alone.

    Raises:
        OutputError: `path` exists and `overwrite` is false, is a link to nothing, it can't be written, or the disk is
            full; and what `check` raises.
    """
    path = Path(path)
    with as_output_error(path):
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        clean(target.parent)  # An earlier folder may have to be put back first.
        _refuse_existing(path, overwrite, check)
        with _made_folders(target.parent), stage_beside(target.parent, target.name) as stage:
            content = stage.new / target.name
            content.mkdir()
            yield content
            _refuse_existing(path, overwrite, check)
            _swap(content, target, stage)


def _refuse_existing(path: Path, overwrite: bool, check: Callable[[Path], None]) -> None:
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path} is a broken link: remove it, or name another folder")
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists: name another folder, or pass --overwrite to replace it")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder: name another output")
    if path.exists():
        check(path)


def _swap(new: Path, path: Path, stage: Stage) -> None:
    """Put `new` at `path`; what was there goes into the stage."""
    if not path.exists():
        new.replace(path)
    elif not exchange(new, path):
        path.replace(stage.replaced / path.name)
        new.replace(path)


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


@contextlib.contextmanager
def claimed_folder(folder: Path, lock: str, busy: str) -> Iterator[None]:
    """Make `folder` if missing, hold the lock file `lock` in it, and undo what killed writers left there.

    It is removed again if it was made and nothing came of it.

    Raises:
        OutputError: Another process holds the lock, reported as `busy`, or the folder can't be written.
    """
    with contextlib.ExitStack() as cleanup:
        with as_output_error(folder):
            cleanup.enter_context(_made_folders(folder))
            cleanup.enter_context(exclusive(folder / lock, busy))
        clean(folder)
        yield


@contextlib.contextmanager
def _made_folders(folder: Path) -> Iterator[None]:
    """Create `folder` and its missing parents; afterwards those that were made are removed, unless they hold files."""
    missing = []
    for place in (folder, *folder.parents):  # Deepest first.
        if os.path.lexists(place):
            break
        missing.append(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for created in missing:
            with contextlib.suppress(OSError):
                created.rmdir()


@contextlib.contextmanager
def as_output_error(path: Path, remedy: str = "") -> Iterator[None]:
    """Turn an OSError into a one-line OutputError that names `path` and ends with `remedy`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None else str(error)
        raise OutputError(f"cannot write {path}: {reason}{remedy}") from error
