"""Whether a PNG is whole, and what of it is decoded: libpng fills gaps and prints its complaints to the terminal."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

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
        BrokenFileError: It breaks off before.
    """
    try:
        header = png_header(data)
    except struct.error as error:
        raise BrokenFileError("it breaks off") from error
    return header.width, header.height


def checked_png(data: bytes) -> bytes:
    """The PNG without the chunks that its pixels don't depend on, once it is known to be whole.

    Raises:
        BrokenFileError: A chunk is missing, cut or changed, the header makes no sense, or there are fewer or more
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
            raise BrokenFileError("it breaks off")
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if len(data) < end:
            raise BrokenFileError("it breaks off")
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
