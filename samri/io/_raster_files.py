"""What OpenCV doesn't look at in JPEG and TIFF files: whether they are whole, how many pages, which alpha.

Depending on its version, OpenCV fills the rest of a broken off JPEG with gray, reads only the first page of a TIFF, and
multiplies the colors of an 8-bit TIFF by its alpha channel. A segmentation should rather fail, or see the colors.
"""

from __future__ import annotations

import re
import struct
from typing import Literal

from samri.io._png_file import PNG_START, BrokenFileError

RasterFormat = Literal["PNG", "JPEG", "TIFF"]

MOST_PAGES = 1000
"""Pages of a TIFF that are counted; one is read."""

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_EXTRA_SAMPLES = 256, 257, 338
_TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}  # Type of a field to that of a number in it.
_UNASSOCIATED_ALPHA, _ASSOCIATED_ALPHA = 2, 1

_JPEG_FRAMES = {0xFFC0 + kind for kind in range(16)} - {0xFFC4, 0xFFC8, 0xFFCC}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # Restart markers are part of a scan.
_MOST_SCANS = 200  # Progressive files have about ten; each costs a pass over all pixels.
# The first words of libjpeg's warnings; it prints the first one of a file.
_JPEG_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
_JPEG_COMPLAINTS = (
    *_JPEG_DAMAGE,
    *("Warning: unknown JFIF revision", "Unknown Adobe color transform", "Invalid SOS parameters"),
)

_OPENCV_LINE = re.compile(r"\[ ?(INFO|WARN|ERROR):\d+@[\d.]+\] ")
_TIFF_COMPLAINT = re.compile(
    _OPENCV_LINE.pattern.replace("(", "(?:") + r"global grfmt_tiff\.cpp:\d+ TIFF_(Error|Warning) (.*)"
)
# Of libtiff's warnings those that change pixels; most others are about unknown tags.
_TIFF_DAMAGE = ("PackBitsDecode: Discarding", "JPEGLib: Corrupt", "JPEGLib: Premature")


def raster_format(data: bytes) -> RasterFormat | None:
    """What the first bytes say that the file is; None for anything else."""
    if data.startswith(PNG_START):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return None


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height, once the file is known to hold a frame, a scan and an end, and no more scans than a camera's.

    Inside a scan every 0xFF is followed by 0 or a restart marker, so that any other marker ends it. A thumbnail lies in
    a segment of its own, whose markers don't count.

    Raises:
        BrokenFileError: The frame, a scan or the end is missing, or it has too many scans.
    """
    size = None
    scans, position = 0, 2
    while len(data) >= position + 4:
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == 0xFFFF:  # Fill byte.
            position += 1
            continue
        if marker in _JPEG_FRAMES and len(data) >= position + 9:
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = (width, height)
        position += 2 + length
        if marker == 0xFFDA:
            scans += 1
            found = _JPEG_MARKER.search(data, position)
            if found is None or size is None:
                break
            if data[found.end() - 1] == 0xD9:
                return size
            if scans == _MOST_SCANS:
                raise BrokenFileError(f"it has more than {_MOST_SCANS} scans")
            position = found.start()
    raise BrokenFileError("it breaks off")


def jpeg_damage(log: str) -> tuple[str | None, str]:
    """What libjpeg complained of that changes pixels, if anything, and the lines of the log that aren't its own."""
    lines = log.splitlines(keepends=True)
    ours = [line for line in lines if line.startswith(_JPEG_COMPLAINTS)]
    damage = next((line.strip() for line in ours if line.startswith(_JPEG_DAMAGE)), None)
    return damage, "".join(line for line in lines if line not in ours)


def tiff_damage(log: str) -> tuple[str | None, str]:
    """As `jpeg_damage`, of what OpenCV logs for libtiff (from OpenCV 4.11 on; earlier ones say nothing)."""
    lines = log.splitlines(keepends=True)
    found = [match for match in map(_TIFF_COMPLAINT.match, lines) if match]
    damage = next(
        (text for level, text in map(re.Match.groups, found) if level == "Error" or text.startswith(_TIFF_DAMAGE)), None
    )
    return damage, "".join(line for line in lines if not _OPENCV_LINE.match(line))


def tiff_page(data: bytes) -> tuple[int, tuple[int, int], bytes]:
    """Number of pages (no more than `MOST_PAGES` are counted), the first one's width and height, and the file.

    That has its alpha declared *associated*, so that colors are left as they are stored.
    Source: TIFF 6.0, sections 2 and 18, and the BigTIFF layout of libtiff.

    Raises:
        BrokenFileError: A directory lies outside the file, or the directories run in a circle.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset_type, count_type, entry_bytes = ("Q", "Q", 20) if big else ("I", "H", 12)
    patched = bytearray(data)
    sides = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
    directories: set[int] = set()
    try:
        (directory,) = struct.unpack_from(order + offset_type, data, 8 if big else 4)
        while directory and len(directories) < MOST_PAGES:
            if directory in directories:
                raise BrokenFileError("its pages run in a circle")
            (count,) = struct.unpack_from(order + count_type, data, directory)
            first = directory + struct.calcsize(order + count_type)
            following = struct.unpack_from(order + offset_type, data, first + count * entry_bytes)[0]
            # Of the first page only: directories may overlap, and each have as many entries as the file allows.
            for entry in range(first, first + count * entry_bytes, entry_bytes) if not directories else ():
                tag, kind = struct.unpack_from(order + "HH", data, entry)
                value = entry + (12 if big else 8)
                if tag in sides:
                    (sides[tag],) = struct.unpack_from(order + _TIFF_NUMBERS.get(kind, "H"), data, value)
                alpha = struct.unpack_from(order + "H", data, value)[0] if tag == _TIFF_EXTRA_SAMPLES else None
                if alpha == _UNASSOCIATED_ALPHA:
                    struct.pack_into(order + "H", patched, value, _ASSOCIATED_ALPHA)
            directories.add(directory)
            directory = following
    except (struct.error, OverflowError) as error:
        raise BrokenFileError("it breaks off") from error
    if not directories:
        raise BrokenFileError("it holds no page")
    return len(directories), (sides[_TIFF_WIDTH], sides[_TIFF_HEIGHT]), bytes(patched)
