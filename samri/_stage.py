"""The hidden folder in which results are made, and what becomes of it when its process is killed.

    .samri-stage.NAME.RANDOM/
        lock        held by the process that works here; the system drops it when that process dies
        new/        what is being made
        replaced/   what was moved out of the way, under its own name
        plan.json   what moves from new/ to beside this folder, with its SHA-256; written before the first move

A later writer that finds one whose lock is free undoes what was begun there, and removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from samri.errors import OutputError
from samri.hashing import file_sha256
from samri.locking import abandoned, try_lock
from samri.opening import read_json

_LOCK, _NEW, _REPLACED, _PLAN = "lock", "new", "replaced", "plan.json"
_PREFIX = ".samri-stage."
_FOLDER = re.compile(r"\.samri-stage\..*\.[a-z0-9_]{8}", re.DOTALL)
_LONGEST_NAME = 40
_ATTEMPTS = 100


class Stage:
    """A hidden folder beside what is being made in it.

    Attributes:
        parent: The folder that the results go to.
        new: Where they are made.
        replaced: Where what they replace goes meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.parent, self.new, self.replaced = folder.parent, folder / _NEW, folder / _REPLACED

    def plan(self, names: Sequence[str]) -> None:
        """Say which files of `new` are about to be moved into `parent`, so that it can be undone whatever happens."""
        digests = {name: file_sha256(self.new / name) for name in names}
        (self._folder / _PLAN).write_text(json.dumps(digests), encoding="utf-8")

    def undo(self) -> None:
        """Take back what was moved, unless all of it was; files that somebody else put there meanwhile stay."""
        planned = self._planned()
        if planned and not any(os.path.lexists(self.new / name) for name in planned):
            return
        for name, digest in planned.items():
            placed = self.parent / name
            # It is known by its bytes: a person may have put another one there since.
            if not os.path.lexists(self.new / name) and _is_regular(placed) and file_sha256(placed) == digest:
                placed.unlink()
        for old in self.replaced.iterdir() if self.replaced.is_dir() else ():
            if not os.path.lexists(self.parent / old.name):
                old.replace(self.parent / old.name)

    def _planned(self) -> dict[str, str]:
        try:
            plan = read_json(self._folder / _PLAN, error=OutputError, remedy="remove it")
        except OutputError:  # None, or not to its end: then nothing was moved yet.
            return {}
        names = plan if isinstance(plan, dict) else {}
        return {name: str(digest) for name, digest in names.items() if Path(name).name == name}


@contextlib.contextmanager
def stage_beside(parent: Path, name: str) -> Iterator[Stage]:
    """A new stage in `parent`, called after `name`, that is gone afterwards; on an exception what was moved is undone.

    What killed processes left in `parent` is undone and removed first.
    """
    clean(parent)
    folder, descriptor = _make(parent, name)
    stage = Stage(folder)
    try:
        stage.new.mkdir()
        stage.replaced.mkdir()
        yield stage
    except BaseException:
        try:
            stage.undo()
        except BaseException:  # All of it stays; the next start continues from it.
            os.close(descriptor)
            raise
        _end(folder, descriptor)
        raise
    _end(folder, descriptor)


def clean(parent: Path) -> None:
    """Undo and remove what killed processes of this user left in `parent`; what can't be removed stays."""
    with contextlib.suppress(OSError):
        with os.scandir(parent) as found:
            left = [
                Path(entry.path)
                for entry in found
                if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False) and _is_ours(entry)
            ]
        for folder in left:
            with contextlib.suppress(OSError):
                _clean_one(folder)


def _clean_one(folder: Path) -> None:
    if not os.path.lexists(folder / _LOCK):
        folder.rmdir()  # Killed before the lock was made; a folder that holds anything is something else.
        return
    with abandoned(folder / _LOCK) as free:
        if free:
            Stage(folder).undo()
            _empty(folder)
            _remove_shell(folder)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return os.name != "posix" or entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def _make(parent: Path, name: str) -> tuple[Path, int]:
    """A new folder, and its open lock."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    for _ in range(_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name[:_LONGEST_NAME]}.", dir=parent))
        try:
            descriptor = os.open(folder / _LOCK, flags, 0o600)
        except FileNotFoundError:  # Another process that starts took the new folder for one that was left.
            continue
        except BaseException:
            folder.rmdir()
            raise
        with contextlib.suppress(FileNotFoundError):
            if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), (folder / _LOCK).lstat()):
                return folder, descriptor
        os.close(descriptor)
    raise OutputError(f"cannot write {parent}: other processes remove every new folder there: name another output")


def _end(folder: Path, descriptor: int) -> None:
    _empty(folder)
    os.close(descriptor)  # Windows removes no open file.
    _remove_shell(folder)


def _empty(folder: Path) -> None:
    """Remove all but the lock, which goes last: without it, nobody could tell that the rest was left."""
    for path in folder.iterdir():
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_shell(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()
        folder.rmdir()


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
