"""The one gate for files from outside: a regular file, of a size in proportion, read without ever waiting.

A named pipe or a device in place of a file would block for ever; a file of unexpected size would take the memory. Both
are refused here, before a byte is read, so that no reader needs checks of its own.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from samri.errors import InputError, SamriError

JSON_LIMIT = 64_000_000
"""Bytes: no JSON file that SAMRI reads comes near it."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(
    path: Path, *, error: type[SamriError] = InputError, limit: int | None = None, follow: bool = True
) -> BinaryIO:
    """Open a regular file for reading; what is no such file is refused at once.

    Args:
        path: The file.
        error: What is raised.
        limit: The most bytes that a file of this kind has.
        follow: False refuses a symbolic link in the last place of the path.

    Returns:
        The open file, unbuffered reads of which never block.

    Raises:
        SamriError: An `error`: it doesn't exist, can't be read, is a folder, a pipe or a device, or is
            larger than `limit`.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", *(() if follow else ("O_NOFOLLOW",))):
        flags |= getattr(os, name, 0)
    try:
        # Opening a device or a pipe may have effects of its own, so it is looked at first.
        _refuse_irregular(path, path.stat(follow_symlinks=follow), error, limit)
        descriptor = os.open(path, flags)
    except SamriError:  # Which may be a ValueError, or an OSError, too.
        raise
    except FileNotFoundError as caught:
        raise error(f"{path} does not exist: check the path") from caught
    except OSError as caught:
        raise error(f"cannot read {path}: {caught.strerror or caught}") from caught
    except ValueError as caught:  # A NUL character.
        raise error(f"{str(path)!r} is not a path: check it") from caught
    try:
        _refuse_irregular(path, os.fstat(descriptor), error, limit)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(
    path: Path, *, error: type[SamriError] = InputError, limit: int | None = None, follow: bool = True
) -> bytes:
    """All bytes of a regular file; arguments and errors as `open_regular`."""
    with open_regular(path, error=error, limit=limit, follow=follow) as file:
        try:
            # A file that grows meanwhile is no reason to take more than was agreed.
            return file.read() if limit is None else file.read(limit + 1)[:limit]
        except OSError as caught:
            raise error(f"cannot read {path}: {caught.strerror or caught}") from caught


def read_json(path: Path, *, error: type[SamriError] = InputError, remedy: str, limit: int = JSON_LIMIT) -> Any:
    """The values in a JSON file.

    Args:
        path: The file.
        error: What is raised.
        remedy: What to do about a damaged file, as the message ends: "copy the store again".
        limit: The most bytes.

    Raises:
        SamriError: An `error`: as `open_regular`, or it isn't JSON in UTF-8.
    """
    try:
        return json.loads(read_regular(path, error=error, limit=limit))
    except (ValueError, RecursionError) as caught:
        if isinstance(caught, SamriError):
            raise
        raise error(f"{path} is damaged (not JSON): {remedy}") from caught


def _refuse_irregular(path: Path, found: os.stat_result, error: type[SamriError], limit: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise error(f"{path} is {kind}: give a regular file")
    if limit is not None and found.st_size > limit:
        raise error(f"{path} has {found.st_size} bytes, and no such file has more than {limit}: give another file")
