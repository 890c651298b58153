"""The bytes of a volume's file, plain or gzipped, with no more time or memory than its size accounts for."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from samri.errors import InputError
from samri.opening import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
_MOST_DEFLATED = 1032  # No deflate stream grows by more than this factor.
_MOST_AROUND = 1 << 30  # Bytes before or behind the voxels: extensions and tags, which are small.
_BLOCK = 1 << 16
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class MissingFrameError(InputError):
    """A 4-D file holds several frames, and none was chosen."""


@dataclass(frozen=True, eq=False)
class VolumeStream:
    """A file that holds a volume.

    Attributes:
        path: Where it is.
        bytes: Its content, gunzipped if it is gzip; seekable.
        limit: The most bytes that the content can have.
    """

    path: Path
    bytes: IO[bytes]
    limit: int

    def check(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], offset: int, frames: int) -> int:
        """Before memory is asked for: can the file hold what its header promises, and the memory one frame of it?

        Returns:
            Bytes of all voxels.

        Raises:
            InputError: It can't.
        """
        data_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if offset + data_bytes > self.limit:
            raise self.broken_off(data_bytes)
        if offset > _MOST_AROUND:
            raise InputError(f"{self.path} has an invalid header (voxels from byte {offset}): export it again")
        if data_bytes // frames > _memory():
            raise InputError(
                f"{self.path} does not fit in memory ({data_bytes // frames} bytes of voxels): "
                "crop it to the part you need"
            )
        return data_bytes

    def finish(self, offset: int, data_bytes: int) -> None:
        """Read to the end, whichever part was used: only there does gzip compare its checksum.

        Raises:
            InputError: The content ends before the voxels do, or continues far beyond them.
        """
        end = offset + data_bytes
        while self.bytes.tell() < end + _MOST_AROUND:
            if not self.bytes.read(_BLOCK):
                break
        else:
            raise InputError(f"{self.path} has more than {_MOST_AROUND} bytes after its voxels: export it again")
        if self.bytes.tell() < end:
            raise self.broken_off(data_bytes)

    def broken_off(self, data_bytes: int) -> InputError:
        """The error about a file that ends too early."""
        return InputError(f"{self.path} is truncated: its header promises {data_bytes} bytes of voxels: copy it again")


@contextlib.contextmanager
def volume_stream(path: Path) -> Iterator[VolumeStream]:
    """Open a volume's file; what is wrong with its bytes is told in one line.

    Raises:
        InputError: It isn't a regular file, is a damaged gzip, or is truncated.
        OSError: The file can't be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        zipped = file.read(2) == _GZIP_MAGIC  # Whatever the name says.
        file.seek(0)
        try:
            if not zipped:
                yield VolumeStream(path, file, size)
                return
            with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                # The interface is that of any binary file.
                yield VolumeStream(path, stream, size * _MOST_DEFLATED)  # type: ignore[arg-type]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is a damaged or truncated gzip file ({error}): copy it again") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise InputError(f"{path} is truncated ({one_line(error)}): copy it again") from error


def choose_frame(path: Path, frames: int, frame: int | None) -> int:
    """The index that `frame` means.

    Raises:
        InputError: There is no such frame.
        MissingFrameError: There are several, and `frame` is None.
    """
    if frame is None and frames > 1:
        raise MissingFrameError(f"{path} has {frames} frames: choose one with --frame 0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        available = "one frame only" if frames == 1 else f"frames 0 to {frames - 1}"
        raise InputError(f"{path} has {available}: there is no frame {frame}")
    return frame or 0


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of length 1 beyond the fourth.

    Raises:
        InputError: It isn't a picture, a volume or frames of one.
    """
    reduced = shape
    while len(reduced) > 4 and reduced[-1] == 1:
        reduced = reduced[:-1]
    if len(reduced) > 4:
        raise InputError(f"{path} is {len(shape)}-D, of shape {shape}: save a 2-D, 3-D or 4-D part of it")
    if len(reduced) < 2:
        raise InputError(f"{path} is not an image: its shape is {shape}")
    if min(reduced) < 1:
        raise InputError(f"{path} has no voxels: its shape is {shape}")
    return reduced


def one_line(error: Exception) -> str:
    """The text of an exception on one line."""
    return " ".join(str(error).split())


def _memory() -> int:
    """Bytes of memory that this process can have at most; enormous where the system doesn't say."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text("ascii")))  # "max" is no number.
    return min((limit for limit in limits if limit > 0), default=1 << 62)
