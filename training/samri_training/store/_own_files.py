"""Opening and writing a store's files safely, in a folder that others may write to.

Links are not followed, pipes are not waited for, and hard-linked files are not written. A killed writer leaves at
most files of fixed names, which the next one takes over.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from io import FileIO
from pathlib import Path
from typing import Any

from samri.errors import OutputError
from samri.locking import try_lock
from samri.staging import as_output_error

_FLAGS = os.O_RDWR | os.O_CREAT
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)


def open_own(path: Path) -> FileIO:
    """Open a file for reading and writing, and make it where it is missing; what it holds stays.

    Raises:
        OutputError: A link, a folder, a pipe, or a file of several names lies there.
        OSError: It can't be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        _refuse_foreign(path, path.stat(follow_symlinks=False))
    file = FileIO(path, "r+b", opener=lambda name, _flags: os.open(name, _FLAGS, 0o666))
    try:
        _refuse_foreign(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def lock_own(path: Path) -> FileIO | None:
    """Open a file as `open_own` does, and hold it for this process alone until it is closed; None if another does.

    Raises:
        OutputError: As `open_own`.
        OSError: It can't be opened.
    """
    while True:
        file = open_own(path)
        try:
            if not try_lock(file.fileno()):
                file.close()
                return None
            # Its last holder may have renamed it between our opening and our locking: then it is no longer ours.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat(follow_symlinks=False)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def rename_own(file: FileIO, path: Path, target: Path) -> None:
    """Give a locked file its final name, and let it go."""
    if sys.platform == "win32":  # It can't be renamed while it is open.
        file.close()
    path.replace(target)
    file.close()


def write_text(path: Path, text: str) -> None:
    """Write a small file; a reader sees the old one or the new one. Of several writers, each waits for the one before.

    Raises:
        OutputError: It can't be written.
    """
    new = path.with_name(f".{path.name}.new")
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while (file := lock_own(new)) is None:
            time.sleep(0.01)
        with file:
            file.truncate(0)
            write_all(file, text.encode(), 0)
            os.fsync(file.fileno())
            rename_own(file, new, path)


def write_all(file: FileIO, content: Any, at: int) -> None:
    """All of `content`, bytes or a contiguous array, at that place; one system call may write a part only."""
    file.seek(at)
    remaining = memoryview(content).cast("B")
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _refuse_foreign(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OutputError(f"{path} is a link, which samri-embed doesn't follow: remove it, or name another --save-dir")
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{path} is not a regular file: remove it, or name another --save-dir")
    if found.st_nlink > 1:
        raise OutputError(f"{path} has another name elsewhere (a hard link): remove it, or name another --save-dir")
