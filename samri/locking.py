"""Locks between processes that the system drops when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from samri.errors import OutputError

# Some network file systems have no locks; there, nothing guards against two writers.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


def try_lock(descriptor: int) -> bool:
    """Hold an open file for this process alone, until it is closed; False when another process holds it.

    Where the file system has no locks, True.
    """
    return _flock(descriptor) is not False


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether the process that held the lock file `path` is gone, for certain; then it is held within the block.

    Where the file system has no locks, nobody can tell, and the answer is False.
    """
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            path.unlink()  # Refused while a process has it open.
        yield not path.exists()
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _flock(descriptor) is True
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool | None:
    """True where the lock is now held, False where another holds it, None where there are no locks."""
    if sys.platform == "win32":  # Windows itself refuses to rename or remove a file that another process has open.
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return None
    return True


@contextlib.contextmanager
def exclusive(path: Path, busy: str, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which is made where it is missing and removed afterwards.

    Args:
        path: The lock file. A link there is not followed.
        busy: The message when another process holds it: which folder, by whom, and what to do.
        wait: Seconds to wait for that process.

    Raises:
        OutputError: Another process holds it, or it can't be made.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    last = time.monotonic() + wait
    while True:
        try:
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        if not try_lock(descriptor):
            os.close(descriptor)
            if time.monotonic() >= last:
                raise OutputError(busy)
            time.sleep(0.05)
            continue
        # Its last holder may have removed it between our opening and our locking: then it guards nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(descriptor)
