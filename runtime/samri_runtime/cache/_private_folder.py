"""A folder that its owner alone can read, since what lies in it derives from patients."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS = 0o077


class UnusableFolderError(Exception):
    """A folder can't be used; the text says why."""


def make_private_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, for the owner alone; a folder of ours that others may enter is closed.

    Raises:
        UnusableFolderError: It is another user's, or no folder.
        OSError: It can't be made.
    """
    for place in (*reversed(folder.parents), folder):
        if not os.path.lexists(place):
            place.mkdir(mode=0o700, exist_ok=True)
    check_private_folder(folder)


def check_private_folder(folder: Path) -> None:
    """Make sure that nobody else can read an existing folder or put anything into it.

    Windows has no such permissions: a folder there inherits those of the one it lies in.

    Raises:
        UnusableFolderError: It is another user's, or no folder.
        OSError: It isn't there, or its permissions can't be changed.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableFolderError(f"{folder} is not a folder")
    if not is_ours(found):
        raise UnusableFolderError(f"{folder} belongs to another user")
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & _OTHERS:
        folder.chmod(0o700)


def is_ours(found: os.stat_result) -> bool:
    """Whether this user owns the file, as far as the system tells."""
    return os.name != "posix" or found.st_uid == os.geteuid()
