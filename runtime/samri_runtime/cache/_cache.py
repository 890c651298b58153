"""The cache: a folder with one file per embedding, shared by any number of processes without locks.

A file is renamed into place once it is complete and never changed afterwards, so a reader sees all of it or none. A
process that is killed while it writes leaves a temporary file, which the next writer removes once it is old. The
modification time of a file is the time of its last use. A cache that fails is a note, never an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from samri_runtime._embedding import (
    MAX_OVERHEAD,
    STORED_PRECISIONS,
    DamagedFileError,
    Embedding,
    StoredPrecision,
    fits,
    from_bytes,
    rounded,
    to_bytes,
)
from samri_runtime.cache._private_folder import (
    UnusableFolderError,
    check_private_folder,
    is_ours,
    make_private_folder,
)
from samri_runtime.machine import user_folder

DEFAULT_MAX_BYTES = 4_000_000_000

_FOLDER = "embeddings"
_SUFFIX, _UNFINISHED = ".safetensors", ".unfinished"
# Names of entries and of temporary files. No other file in the folder is touched.
_ENTRY = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_HALF_WRITTEN = re.compile(rf"\.[0-9a-f]{{16}}\.[0-9a-f]{{16}}{re.escape(_UNFINISHED)}")
# Writing takes less than a second; an older temporary file was left by a process that was killed.
_ABANDONED_SECONDS = 600.0
# RuntimeError: pathlib can't tell the home folder.
_FAILURES = (OSError, UnusableFolderError, RuntimeError)


class EmbeddingCache:
    """Embeddings on disk, for `Predictor(..., cache=...)`. Safe with several threads and processes at once.

    Args:
        folder: Parent of the folder `embeddings`, which only its owner can read. None takes the user's cache folder
            (`SAMRI_CACHE_DIR`, or the system's place for caches).
        precision: `fp32` gives exactly the same masks with and without the cache; `fp16` takes half the space and
            rounds every embedding, new ones too. A cache in fp32 ignores entries in fp16.
        max_bytes: Total size of the entries; beyond it, those unused for longest are removed. 0 keeps nothing new.

    Raises:
        ValueError: Unknown precision, or a size below 0.

    Example:
        >>> from samri_runtime import Predictor
        >>> from samri_runtime.cache import EmbeddingCache
        >>> predictor = Predictor("samri-tiny", "cpu", cache=EmbeddingCache(folder, max_bytes=500_000_000))
        >>> predictor.encode(image).cached, predictor.encode(image).cached
        (False, True)
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        precision: StoredPrecision = "fp32",
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        if precision not in STORED_PRECISIONS:
            raise ValueError(f"a cache stores {' or '.join(STORED_PRECISIONS)}, not {precision!r}")
        if max_bytes < 0:
            raise ValueError(f"a cache's size is 0 bytes or more, not {max_bytes}")
        self.precision: StoredPrecision = precision
        self.max_bytes = max_bytes
        self._given = None if folder is None else Path(folder)
        self._last_time = 0
        self._telling_time = threading.Lock()

    @property
    def folder(self) -> Path:
        """The folder with the entries.

        Raises:
            RuntimeError: The home folder is unknown.
        """
        return (user_folder("cache") if self._given is None else self._given.expanduser()) / _FOLDER

    def path_of(self, key: str) -> Path:
        """The file of an entry.

        Raises:
            ValueError: `key` isn't from `embedding_key`.
        """
        if not _ENTRY.fullmatch(f"{key}{_SUFFIX}"):
            raise ValueError(f"a key is 64 hexadecimal digits, not {key!r}")
        return self.folder / f"{key}{_SUFFIX}"

    def find(self, key: str, embedding_id: str, shape: tuple[int, ...]) -> tuple[Embedding | None, tuple[str, ...]]:
        """Look an embedding up.

        Args:
            key: From `embedding_key`.
            embedding_id: Identifies the encoder.
            shape: (1, C, G, G) of its embeddings.

        Returns:
            The embedding in float32, or None where it must be computed; and messages for the user, such as that an
            entry was damaged.
        """
        try:
            path = self.path_of(key)
            check_private_folder(path.parent, _is_own_name)
            data = _read_own(path, 4 * int(np.prod(shape)) + MAX_OVERHEAD)
        except FileNotFoundError:
            return None, ()
        except _FAILURES as error:
            return None, (f"the embedding cache can't be read: {_reason(error)}; encoding without it",)
        try:
            embedding, precision, stored_key = from_bytes(data)
            if (stored_key, embedding.embedding_id, embedding.features.shape) != (key, embedding_id, shape):
                raise DamagedFileError("it belongs to another image or encoder")
        except DamagedFileError as error:
            with contextlib.suppress(OSError):  # Else the new one replaces it.
                path.unlink()
            return None, (f"the cached embedding {path} is damaged ({error}): computed again",)
        if precision == "fp16" and self.precision == "fp32":
            return None, ()
        with contextlib.suppress(OSError):  # On a read-only disk, entries are used all the same.
            self._touch(path)
        return replace(embedding, features=rounded(embedding.features, self.precision), cached=True), ()

    def keep(self, key: str, embedding: Embedding) -> Embedding:
        """Store an embedding, and remove the entries that were unused for longest if they exceed `max_bytes`.

        Args:
            key: From `embedding_key`.
            embedding: In float32, with an `embedding_id`. NaN and infinite numbers aren't stored.

        Returns:
            The embedding as later runs will read it, which in half precision is rounded; with notes, such as that the
            disk is full.
        """
        precision: StoredPrecision = self.precision if fits(embedding.features, self.precision) else "fp32"
        if not fits(embedding.features, precision):
            return _with_note(embedding, "the embedding holds NaN or infinite numbers: not kept in the cache")
        result = replace(embedding, features=rounded(embedding.features, precision))
        pieces = to_bytes(result, precision, key)
        size = sum(piece.nbytes for piece in pieces)
        if size > self.max_bytes:
            return _with_note(
                result, f"an embedding takes {size} bytes, more than the cache's {self.max_bytes}: not kept"
            )
        try:
            path = self.path_of(key)
            folder = path.parent
            make_private_folder(folder, _is_own_name)
            now = self._write(path, pieces)
            _remove_abandoned(folder, now)
            self._shrink(folder)
        except _FAILURES as error:
            return _with_note(result, f"the embedding isn't kept in the cache: {_reason(error)}")
        return result

    def clear(self) -> int:
        """Remove all entries and abandoned temporary files; returns how many files were removed.

        Raises:
            OSError: One of them can't be removed.
        """
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for pattern in (_ENTRY, _HALF_WRITTEN):
                for path, _ in list(_entries(self.folder, pattern)):
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _write(self, path: Path, pieces: list[memoryview]) -> float:
        """Write beside, then rename; returns the time by the file system's clock, which may be another machine's."""
        unfinished = path.with_name(f".{path.stem[:16]}.{secrets.token_hex(8)}{_UNFINISHED}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(unfinished, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for piece in pieces:
                    _write_all(file.fileno(), piece)
            now = unfinished.stat().st_mtime
            self._touch(unfinished)
            try:
                unfinished.replace(path)
            except PermissionError:
                # Windows can't replace a file that is being read; then the same embedding is there already.
                if os.name == "posix" or not path.is_file():
                    raise
                unfinished.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        return now

    def _touch(self, path: Path) -> None:
        """Set the time of last use to now; later uses in this process get later times, however coarse the clock."""
        with self._telling_time:
            self._last_time = max(time.time_ns(), self._last_time + 1000)
            now = self._last_time
        os.utime(path, ns=(now, now))

    def _shrink(self, folder: Path) -> None:
        entries = sorted(_entries(folder, _ENTRY), key=lambda entry: (entry[1].st_mtime_ns, entry[0].name))
        total = sum(status.st_size for _, status in entries)
        for path, status in entries:
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):  # Another process was faster, or reads it on Windows.
                path.unlink()
            total -= status.st_size


def _with_note(embedding: Embedding, note: str) -> Embedding:
    return replace(embedding, notes=(*embedding.notes, note))


def _is_own_name(name: str) -> bool:
    """Whether this is the name of an entry or of a temporary file."""
    return bool(_ENTRY.fullmatch(name) or _HALF_WRITTEN.fullmatch(name))


def _remove_abandoned(folder: Path, now: float) -> None:
    for path, status in _entries(folder, _HALF_WRITTEN):
        if now - status.st_mtime > _ABANDONED_SECONDS:
            with contextlib.suppress(OSError):
                path.unlink()


def _entries(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files with such names, and their status."""
    with os.scandir(folder) as listing:
        for entry in listing:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # Removed by another process meanwhile.
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _read_own(path: Path, most: int) -> bytes:
    """Up to `most` + 1 bytes of a regular file of this user; links aren't followed.

    Raises:
        UnusableFolderError: It belongs to another user, or isn't a regular file.
        OSError: It can't be read.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not (stat.S_ISREG(status.st_mode) and is_ours(status)):
            raise UnusableFolderError(f"{path} isn't a regular file of this user")
        # A longer file is damaged: no need to read it to its end.
        return file.read(most + 1)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {os.strerror(error.errno)}" if error.filename else os.strerror(error.errno)
    return " ".join(str(error).split())
