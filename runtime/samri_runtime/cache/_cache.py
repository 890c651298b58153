"""The cache: a folder with one file an embedding, shared by any number of processes without locks.

A file appears under its name whole, by renaming, and is never changed afterwards: whoever reads sees all of it or none.
A process that is killed while it writes leaves a temporary file, which the next writer removes once it is old. When an
embedding was last used is its file's time of modification. Nothing here raises: a cache is no reason to fail.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samri_runtime.cache._file import (
    MOST_OVERHEAD,
    STORED_PRECISIONS,
    DamagedFileError,
    StoredEmbedding,
    StoredPrecision,
    fits,
    pack,
    rounded,
    unpack,
)
from samri_runtime.cache._private_folder import (
    UnusableFolderError,
    check_private_folder,
    is_ours,
    make_private_folder,
)
from samri_runtime.providers import user_cache_folder

DEFAULT_MAX_BYTES = 4_000_000_000

_FOLDER = "embeddings"
_SUFFIX, _UNFINISHED = ".safetensors", ".unfinished"
# The cache's own names: an embedding's key, and what `_write` makes. Nothing else in its folder is touched.
_ENTRY = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_HALF_WRITTEN = re.compile(rf"\.[0-9a-f]{{16}}\.[0-9a-f]{{16}}{re.escape(_UNFINISHED)}")
# Writing takes well below a second; what is older was left by a process that was killed.
_ABANDONED_SECONDS = 600.0
# Where one may not look, or the disk fails; and a home that can't be told.
_FAILURES = (OSError, UnusableFolderError, RuntimeError)


@dataclass(frozen=True, eq=False)
class Found:
    """The answer to `EmbeddingCache.find`.

    Attributes:
        features: (1, C, G, G) float32, or None where the embedding must be computed.
        made: How it came about, as it was told to `keep`.
        notes: Plain lines for a person, such as that an entry was damaged.
    """

    features: npt.NDArray[np.float32] | None = None
    made: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Kept:
    """The answer to `EmbeddingCache.keep`.

    Attributes:
        features: What later runs will read: in half precision, rounded to it.
        notes: Plain lines for a person, such as that the disk is full.
    """

    features: npt.NDArray[np.float32]
    notes: tuple[str, ...] = ()


class EmbeddingCache:
    """Embeddings on disk, for `Predictor(..., cache=...)`. Safe with several threads and processes at once.

    Args:
        folder: Where; embeddings lie in its subfolder `embeddings`, which only its owner can read. None takes the
            user's cache folder (`SAMRI_CACHE_DIR`, or where the system has caches).
        precision: `fp32` gives the very same masks with and without the cache; `fp16` takes half the space, and rounds
            every embedding, a new one too. An entry in half precision doesn't serve a cache of fp32.
        max_bytes: Of all entries together; those that weren't used for longest are removed. 0 keeps nothing new.

    Raises:
        ValueError: No such precision, or a size below 0.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        precision: StoredPrecision = "fp32",
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        if precision not in STORED_PRECISIONS:
            raise ValueError(f"a cache keeps {' or '.join(STORED_PRECISIONS)}, not {precision!r}")
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
            RuntimeError: The system doesn't tell where the user's home is.
        """
        return (user_cache_folder() if self._given is None else self._given.expanduser()) / _FOLDER

    def path_of(self, key: str) -> Path:
        """The file of an entry.

        Raises:
            ValueError: `key` isn't one of `embedding_key`.
        """
        if not _ENTRY.fullmatch(f"{key}{_SUFFIX}"):
            raise ValueError(f"a key is 64 hexadecimal digits, not {key!r}")
        return self.folder / f"{key}{_SUFFIX}"

    def find(self, key: str, embedding_id: str, shape: tuple[int, ...]) -> Found:
        """Look an embedding up.

        Args:
            key: From `embedding_key`.
            embedding_id: Of the encoder.
            shape: (1, C, G, G) of its embeddings.
        """
        try:
            path = self.path_of(key)
            check_private_folder(path.parent, _is_own_name)
            data = _read_own(path, 4 * int(np.prod(shape)) + MOST_OVERHEAD)
        except FileNotFoundError:
            return Found()
        except _FAILURES as error:
            return Found(notes=(f"the embedding cache can't be read: {_reason(error)}; encoding without it",))
        try:
            stored = unpack(data)
            if (stored.key, stored.embedding_id, stored.features.shape) != (key, embedding_id, shape):
                raise DamagedFileError("it belongs to another image or encoder")
        except DamagedFileError as error:
            with contextlib.suppress(OSError):  # Else the new one replaces it.
                path.unlink()
            return Found(notes=(f"the cached embedding {path} is damaged ({error}): computed again",))
        if stored.precision == "fp16" and self.precision == "fp32":
            return Found()
        with contextlib.suppress(OSError):  # On a disk that is read only, an entry is found all the same.
            self._touch(path)
        return Found(rounded(stored.features, self.precision), stored.made)

    def keep(
        self,
        key: str,
        features: npt.NDArray[np.float32],
        shape: tuple[int, int],
        embedding_id: str,
        made: Mapping[str, str],
    ) -> Kept:
        """Store an embedding, and remove what was not used for longest if there is too much.

        Args:
            key: From `embedding_key`.
            features: (1, C, G, G) float32. NaN and infinite numbers aren't kept.
            shape: (H, W) of the slice.
            embedding_id: Of the encoder.
            made: How it came about.
        """
        precision: StoredPrecision = self.precision if fits(features, self.precision) else "fp32"
        if not fits(features, precision):
            return Kept(features, ("the embedding holds NaN or infinite numbers: not kept in the cache",))
        result = rounded(features, precision)
        pieces = pack(StoredEmbedding(result, precision, shape, embedding_id, key, made))
        size = sum(piece.nbytes for piece in pieces)
        if size > self.max_bytes:
            return Kept(result, (f"an embedding takes {size} bytes, more than the cache's {self.max_bytes}: not kept",))
        try:
            path = self.path_of(key)
            folder = path.parent
            make_private_folder(folder, _is_own_name)
            now = self._write(path, pieces)
            _remove_abandoned(folder, now)
            self._shrink(folder)
        except _FAILURES as error:
            return Kept(result, (f"the embedding isn't kept in the cache: {_reason(error)}",))
        return Kept(result)

    def clear(self) -> int:
        """Remove all entries, and what killed processes left; returns how many files were removed.

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
        """Write beside, then rename; returns the time by the clock of the disk, which may be another machine's."""
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
                # Windows replaces no file that is being read; then the same embedding is there already.
                if os.name == "posix" or not path.is_file():
                    raise
                unfinished.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        return now

    def _touch(self, path: Path) -> None:
        """Used now; a later use in this process has a later time, however coarse the clock is."""
        with self._telling_time:
            self._last_time = max(time.time_ns(), self._last_time + 1000)
            now = self._last_time
        os.utime(path, ns=(now, now))

    def _shrink(self, folder: Path) -> None:
        entries = sorted(_entries(folder, _ENTRY), key=lambda entry: (entry[1].st_mtime_ns, entry[0].name))
        total = sum(found.st_size for _, found in entries)
        for path, found in entries:
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):  # Another process was faster, or reads it on Windows.
                path.unlink()
            total -= found.st_size


def _is_own_name(name: str) -> bool:
    """Whether the cache gives its files such names."""
    return bool(_ENTRY.fullmatch(name) or _HALF_WRITTEN.fullmatch(name))


def _remove_abandoned(folder: Path, now: float) -> None:
    for path, found in _entries(folder, _HALF_WRITTEN):
        if now - found.st_mtime > _ABANDONED_SECONDS:
            with contextlib.suppress(OSError):
                path.unlink()


def _entries(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files of the cache's own naming."""
    with os.scandir(folder) as found:
        for entry in found:
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # Removed by another process meanwhile.
                    yield Path(entry.path), entry.stat(follow_symlinks=False)


def _read_own(path: Path, most: int) -> bytes:
    """The bytes of a plain file of this user's; a link is followed nowhere.

    Raises:
        UnusableFolderError: It is another user's, or no plain file.
        OSError: It can't be read.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not (stat.S_ISREG(found.st_mode) and is_ours(found)):
            raise UnusableFolderError(f"{path} isn't a file of this user's")
        # A file that is too large is damaged, and need not be read to its end to know it.
        return file.read(most + 1)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename}: {os.strerror(error.errno)}" if error.filename else os.strerror(error.errno)
    return " ".join(str(error).split())
