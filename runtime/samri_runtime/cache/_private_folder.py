"""A folder that its owner alone can read, since what lies in it derives from patients."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

_OTHERS, _OTHERS_WRITE = 0o077, 0o022


class UnusableFolderError(Exception):
    """A folder can't be used; the text says why."""


def make_private_folder(folder: Path, is_own_name: Callable[[str], bool]) -> None:
    """Make `folder` and its missing parents, for the owner alone; a folder of ours that others may enter is closed.

    Args:
        folder: The folder.
        is_own_name: As for `check_private_folder`.

    Raises:
        UnusableFolderError: As `check_private_folder`.
        OSError: It can't be made.
    """
    for place in (*reversed(folder.parents), folder):
        if not os.path.lexists(place):
            place.mkdir(mode=0o700, exist_ok=True)
    check_private_folder(folder, is_own_name)


def check_private_folder(folder: Path, is_own_name: Callable[[str], bool]) -> None:
    """Make sure that nobody else can read an existing folder or put anything into it.

    A folder that holds other files too, which colleagues may need, isn't closed; nor is it used if they can write
    there. Windows has no such permissions: a folder there inherits those of the one it lies in.

    Args:
        folder: The folder.
        is_own_name: Whether a file of this name is of those that the folder is for.

    Raises:
        UnusableFolderError: It is another user's, no folder, or holds other files where others can write.
        OSError: It isn't there, or its permissions can't be changed.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableFolderError(f"{folder} is not a folder")
    if not is_ours(found):
        raise UnusableFolderError(f"{folder} belongs to another user")
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & _OTHERS:
        if all(is_own_name(path.name) for path in folder.iterdir()):
            folder.chmod(0o700)
        elif stat.S_IMODE(found.st_mode) & _OTHERS_WRITE:
            raise UnusableFolderError(f"{folder} holds other files, and others can write there: name another folder")


def is_ours(found: os.stat_result) -> bool:
    """Whether this user owns the file, as far as the system tells."""
    return os.name != "posix" or found.st_uid == os.geteuid()
