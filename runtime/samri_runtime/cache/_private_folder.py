"""A folder that only its owner can read, since its files derive from patients."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

_OTHERS, _OTHERS_WRITE = 0o077, 0o022


class UnusableFolderError(Exception):
    """A folder can't be used; the message says why."""


def make_private_folder(folder: Path, is_own_name: Callable[[str], bool]) -> None:
    """Create `folder` and its missing parents for the owner alone; close an existing one of this user to others.

    Args:
        folder: The folder.
        is_own_name: As for `check_private_folder`.

    Raises:
        UnusableFolderError: As `check_private_folder`.
        OSError: It can't be created.
    """
    for place in (*reversed(folder.parents), folder):
        if not os.path.lexists(place):
            place.mkdir(mode=0o700, exist_ok=True)
    check_private_folder(folder, is_own_name)


def check_private_folder(folder: Path, is_own_name: Callable[[str], bool]) -> None:
    """Make sure that no other user can read an existing folder or write to it.

    A folder that holds other files too, which colleagues may need, isn't closed to them; if they can write to it, it
    isn't used. Windows has no such permissions: folders there inherit those of their parent.

    Args:
        folder: The folder.
        is_own_name: Whether a file of this name is one that the folder is for.

    Raises:
        UnusableFolderError: It belongs to another user, isn't a folder, or holds other files and is open to others.
        OSError: It doesn't exist, or its permissions can't be changed.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UnusableFolderError(f"{folder} is not a folder")
    if not is_ours(status):
        raise UnusableFolderError(f"{folder} belongs to another user")
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & _OTHERS:
        if all(is_own_name(path.name) for path in folder.iterdir()):
            folder.chmod(0o700)
        elif stat.S_IMODE(status.st_mode) & _OTHERS_WRITE:
            raise UnusableFolderError(f"{folder} holds other files, and others can write there: name another folder")


def is_ours(status: os.stat_result) -> bool:
    """Whether this user owns the file; always true where the system doesn't tell."""
    return os.name != "posix" or status.st_uid == os.geteuid()
