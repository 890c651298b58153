"""SHA-256 of files, to tell that a file is the expected one."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from samri.errors import InputError
from samri.opening import open_regular


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb", buffering=0) as file:
        return stream_sha256(file)


@contextlib.contextmanager
def hashed_as_read(path: Path) -> Iterator[Callable[[], str]]:
    """Yield what gives the SHA-256 of a file, to be called once the file was read within the block.

    The file is held open from before it is read, and that very file is hashed. So the digest is of the bytes that were
    read, or there is none: a file that was replaced or changed meanwhile is refused.

    Raises:
        InputError: It was replaced or changed since the block began, or can't be opened.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())

        def digest() -> str:
            hashed = stream_sha256(file)
            after, named = os.fstat(file.fileno()), path.stat()
            if not os.path.samestat(after, named) or _state(before) != _state(after):
                raise InputError(f"{path} was changed while it was read: try again once it is written")
            return hashed

        yield digest


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def stream_sha256(file: BinaryIO) -> str:
    """Hexadecimal SHA-256 of what an open file holds from its position on, read in pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
    return digest.hexdigest()
