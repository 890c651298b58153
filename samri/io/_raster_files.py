"""What OpenCV doesn't look at in JPEG and TIFF files: whether they are whole, how many pages, which alpha.

Depending on its version, OpenCV fills the rest of a broken off JPEG with gray, reads only the first page of a TIFF, and
multiplies the colors of an 8-bit TIFF by its alpha channel. A segmentation should rather fail, or see the colors.
"""

from __future__ import annotations

import struct
from typing import Literal

from samri.io._png_file import PNG_START, BrokenFileError

RasterFormat = Literal["PNG", "JPEG", "TIFF"]

_TIFF_EXTRA_SAMPLES = 338
_UNASSOCIATED_ALPHA, _ASSOCIATED_ALPHA = 2, 1


def raster_format(data: bytes) -> RasterFormat | None:
    """What the first bytes say that the file is; None for anything else."""
    if data.startswith(PNG_START):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return None


def check_jpeg(data: bytes) -> None:
    """Look for the end-of-image marker after the start of the first scan.

    Inside a scan every 0xFF is followed by 0 or a restart marker, so that 0xFFD9 can only be the end. A thumbnail's
    own end, in a segment before the scan, doesn't count.

    Raises:
        BrokenFileError: There is no scan or no end.
    """
    position = 2
    while len(data) >= position + 4:
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFFFF:  # Fill byte.
            position += 1
            continue
        if marker == 0xFFDA:
            if data.find(b"\xff\xd9", position + 2 + length) < 0:
                break
            return
        position += 2 + length
    raise BrokenFileError("it breaks off")


def tiff_pages_and_plain_alpha(data: bytes) -> tuple[int, bytes]:
    """Number of pages, and the file with its alpha declared *associated*, so that colors are left as they are stored.

    Source: TIFF 6.0, sections 2 and 18, and the BigTIFF layout of libtiff.

    Raises:
        BrokenFileError: A directory lies outside the file, or the directories run in a circle.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset_type, count_type, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    patched = bytearray(data)
    directories: set[int] = set()
    try:
        (directory,) = struct.unpack_from(order + offset_type, data, 8 if big else 4)
        while directory:
            if directory in directories:
                raise BrokenFileError("its pages run in a circle")
            directories.add(directory)
            (count,) = struct.unpack_from(order + count_type, data, directory)
            first = directory + struct.calcsize(order + count_type)
            for entry in range(first, first + count * entry_bytes, entry_bytes):
                (tag,) = struct.unpack_from(order + "H", data, entry)
                value = entry + (12 if big else 8)
                alpha = struct.unpack_from(order + "H", data, value)[0] if tag == _TIFF_EXTRA_SAMPLES else None
                if alpha == _UNASSOCIATED_ALPHA:
                    struct.pack_into(order + "H", patched, value, _ASSOCIATED_ALPHA)
            (directory,) = struct.unpack_from(order + offset_type, data, first + count * entry_bytes)
    except struct.error as error:
        raise BrokenFileError("it breaks off") from error
    if not directories:
        raise BrokenFileError("it holds no page")
    return len(directories), bytes(patched)
