"""Whether the file of a picture is whole, and what of it is decoded: checks on PNG, JPEG and TIFF before OpenCV.

What each check is for, from files damaged at random (half of them cut, half with one bit changed):

- JPEG: OpenCV fills the rest with gray or noise. It opened 188 (release 5.0) and 346 (4.10) of 400 with other pixels,
  Pillow 186. With these checks 102 remain: bits changed within a scan, which the format doesn't let anybody notice.
- TIFF: OpenCV reads only the first page, and multiplies the colors of an 8-bit file by its alpha channel. The format
  has no checksums: 194 of 400 were opened with other pixels, with these checks or without.
- PNG: OpenCV from 4.10 to 5.0 refuses 699 of 700 itself. But libpng prints to the terminal then, and for a color
  profile that it dislikes; and OpenCV doesn't say what is wrong. Pillow opens a file with half its rows, and without a
  palette, and makes 8 bits of 16-bit RGB. The checks here need no redirection of stderr, which holds for all threads.

All read the size first: a small file may promise any number of pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

PNG_START = b"\x89PNG\r\n\x1a\n"
GRAY_ALPHA = 4  # PNG's number of the color type.

# Color type to channels and bit depths. Source: the PNG specification, section 11.2.1.
_CHANNELS = {0: 1, 2: 3, 3: 1, GRAY_ALPHA: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), 6: (8, 16)}
_PALETTE = 3
_LONGEST_SIDE = 1_000_000  # libpng's own limit.
# First column and row, and steps between them, of Adam7's seven passes.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_LAST_FILTER = 4
_BLOCK = 1 << 20

# What the pixels depend on, and where the camera was up. A color profile or a date only gives libpng cause to warn.
_DECODED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")


class BrokenFileError(Exception):
    """The file isn't whole; the text says where."""


class PngHeader(NamedTuple):
    """The fields of an IHDR chunk."""

    width: int
    height: int
    depth: int
    color: int
    compression: int
    filtering: int
    interlace: int


def png_header(data: bytes) -> PngHeader:
    """The IHDR chunk of a checked PNG."""
    return PngHeader(*struct.unpack_from(">IIBBBBB", data, len(PNG_START) + 8))


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header states them, of a file that isn't checked yet.

    Raises:
        BrokenFileError: It ends earlier.
    """
    try:
        header = png_header(data)
    except struct.error as error:
        raise BrokenFileError("it is truncated") from error
    return header.width, header.height


def checked_png(data: bytes) -> bytes:
    """The PNG without the chunks that its pixels don't depend on, once it is known to be whole.

    Raises:
        BrokenFileError: A chunk is missing, cut or changed, the header is invalid, or there are fewer or more
            pixels than it promises.
    """
    chunks = list(_chunks(data))
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13 + 12:
        raise BrokenFileError("it doesn't begin with a header")
    header = png_header(data)
    _check_header(header)
    kinds = [kind for kind, _ in chunks]
    if b"IDAT" not in kinds:
        raise BrokenFileError("it holds no pixels")
    if header.color == _PALETTE and b"PLTE" not in kinds[: kinds.index(b"IDAT")]:
        raise BrokenFileError("its palette is missing")
    _check_pixels(header, b"".join(chunk[8:-4] for kind, chunk in chunks if kind == b"IDAT"))
    return PNG_START + b"".join(chunk for kind, chunk in chunks if kind in _DECODED)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each chunk up to IEND."""
    position = len(PNG_START)
    kind = b""
    while kind != b"IEND":
        if len(data) < position + 12:
            raise BrokenFileError("it is truncated")
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if len(data) < end:
            raise BrokenFileError("it is truncated")
        if zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BrokenFileError("a checksum is wrong")
        kind = data[position + 4 : position + 8]
        yield kind, data[position:end]
        position = end


def _check_header(header: PngHeader) -> None:
    if not (header.width and header.height):
        raise BrokenFileError(f"its header promises {header.width} x {header.height} pixels")
    if max(header.width, header.height) > _LONGEST_SIDE:
        raise BrokenFileError(f"its header promises {header.width} x {header.height} pixels, more than can be read")
    if header.depth not in _DEPTHS.get(header.color, ()):
        raise BrokenFileError(f"its header names color type {header.color} of {header.depth} bits, which doesn't exist")
    if (header.compression, header.filtering) != (0, 0) or header.interlace not in (0, 1):
        raise BrokenFileError("its header names a method that doesn't exist")


def _check_pixels(header: PngHeader, packed: bytes) -> None:
    """Decompress, a block at a time, and compare with what the header promises."""
    passes = list(_passes(header))
    unpacker = zlib.decompressobj()
    position, missing = 0, sum(rows * row_bytes for rows, row_bytes in passes)
    try:
        while missing:
            block = unpacker.decompress(packed, min(_BLOCK, missing))
            if not block:
                raise BrokenFileError("it has fewer pixels than its header promises")
            _check_filters(block, position, passes)
            packed = unpacker.unconsumed_tail
            position, missing = position + len(block), missing - len(block)
        surplus = unpacker.decompress(packed, 1)
    except zlib.error as error:
        raise BrokenFileError("its pixels can't be decompressed") from error
    if surplus or not unpacker.eof:
        raise BrokenFileError("its pixels don't end where its header says")


def _passes(header: PngHeader) -> Iterator[tuple[int, int]]:
    """Rows, and bytes a row with the one that names its filter, of each interlacing pass; of one pass without."""
    bits = _CHANNELS[header.color] * header.depth
    for column, row, column_step, row_step in _ADAM7 if header.interlace else ((0, 0, 1, 1),):
        columns = -(-max(0, header.width - column) // column_step)
        rows = -(-max(0, header.height - row) // row_step)
        if rows and columns:
            yield rows, 1 + (columns * bits + 7) // 8


def _check_filters(block: bytes, position: int, passes: list[tuple[int, int]]) -> None:
    """Look at the filters of the rows that begin in `block`, which lies `position` bytes into the pixels."""
    start = 0
    for rows, row_bytes in passes:
        end = start + rows * row_bytes
        # The first row of this pass at or behind the beginning of the block.
        first = start + max(0, -(-(position - start) // row_bytes)) * row_bytes
        if any(kind > _LAST_FILTER for kind in block[first - position : max(0, end - position) : row_bytes]):
            raise BrokenFileError("a row is packed in a way that doesn't exist")
        start = end


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
    """Kind of a file by its first bytes; None for anything else."""
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
            match = _JPEG_MARKER.search(data, position)
            if match is None or size is None:
                break
            if data[match.end() - 1] == 0xD9:
                return size
            if scans == _MOST_SCANS:
                raise BrokenFileError(f"it has more than {_MOST_SCANS} scans")
            position = match.start()
    raise BrokenFileError("it is truncated")


def jpeg_damage(log: str) -> tuple[str | None, str]:
    """What libjpeg complained of that changes pixels, if anything, and the lines of the log that aren't its own."""
    lines = log.splitlines(keepends=True)
    ours = [line for line in lines if line.startswith(_JPEG_COMPLAINTS)]
    damage = next((line.strip() for line in ours if line.startswith(_JPEG_DAMAGE)), None)
    return damage, "".join(line for line in lines if line not in ours)


def tiff_damage(log: str) -> tuple[str | None, str]:
    """As `jpeg_damage`, of what OpenCV logs for libtiff (from OpenCV 4.11 on; earlier ones say nothing)."""
    lines = log.splitlines(keepends=True)
    complaints = [match for match in map(_TIFF_COMPLAINT.match, lines) if match]
    damage = next(
        (text for level, text in map(re.Match.groups, complaints) if level == "Error" or text.startswith(_TIFF_DAMAGE)),
        None,
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
                raise BrokenFileError("its pages form a loop")
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
        raise BrokenFileError("it is truncated") from error
    if not directories:
        raise BrokenFileError("it holds no page")
    return len(directories), (sides[_TIFF_WIDTH], sides[_TIFF_HEIGHT]), bytes(patched)
