"""SHA-256 of files, for whoever must know that a file is the one that was meant."""

from __future__ import annotations

import hashlib
from io import BufferedReader, FileIO
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb", buffering=0) as file:
        return stream_sha256(file)


def stream_sha256(file: FileIO | BufferedReader) -> str:
    """Hexadecimal SHA-256 of what is left of an open file, read in pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()
