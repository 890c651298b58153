"""The compressed strips and tiles of a TIFF: what holds a checksum is compared with it, since OpenCV's reader doesn't.

Source: TIFF 6.0, section 2, and Adobe's TIFF Technical Note on Deflate compression.
"""

from __future__ import annotations

import struct
import zlib

from samri.io._raster_checks import BrokenFileError

_COMPRESSION, _DEFLATE = 259, (8, 32946)
_PLACES = {273: "offsets", 324: "offsets", 279: "sizes", 325: "sizes"}  # Strips, tiles.
_NUMBERS = {3: "H", 4: "I", 16: "Q"}

_PIXEL_BYTES = 32  # More than OpenCV reads of any pixel: four float64.
_SMALLEST = 1 << 22  # Pixels; a tile may be larger than the picture.
_PIECE = 1 << 20


def check_deflate(data: bytes, size: tuple[int, int]) -> None:
    """Compare the first page's strips with the Adler-32 in each, if it is compressed with Deflate (`zlib`).

    Args:
        data: The file, whose directories are known to lie within it.
        size: Width and height, which bound what is unpacked.

    Raises:
        BrokenFileError: A strip is damaged, lies outside the file, or overlaps others.
    """
    try:
        strips = _deflated_strips(data)
    except (struct.error, OverflowError, KeyError) as error:
        raise BrokenFileError("its strips can't be found") from error
    if sum(length for _, length in strips) > len(data):
        raise BrokenFileError("its strips overlap")
    room = _PIXEL_BYTES * max(size[0] * size[1], _SMALLEST)
    for offset, length in sorted(strips):
        if offset + length > len(data):
            raise BrokenFileError("it is truncated")
        room -= _unpacked_bytes(data[offset : offset + length], room)


def _deflated_strips(data: bytes) -> set[tuple[int, int]]:
    """Offset and length of each strip or tile of the first page; none with another compression."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset_type, count_type, entry_bytes, inline = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    (directory,) = struct.unpack_from(order + offset_type, data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + count_type, data, directory)
    first = directory + struct.calcsize(order + count_type)
    compression = 1
    fields: dict[str, tuple[int, ...]] = {}
    for entry in range(first, first + entries * entry_bytes, entry_bytes):
        tag, kind, count = struct.unpack_from(f"{order}HH{offset_type}", data, entry)
        place = entry + entry_bytes - inline
        if tag == _COMPRESSION:
            (compression,) = struct.unpack_from(order + "H", data, place)
        elif tag in _PLACES:
            numbers = f"{order}{count}{_NUMBERS[kind]}"
            if struct.calcsize(numbers) > inline:
                (place,) = struct.unpack_from(order + offset_type, data, place)
            fields[_PLACES[tag]] = struct.unpack_from(numbers, data, place)
    if compression not in _DEFLATE or len(fields) < 2:
        return set()
    # A strip of no bytes stands for one that was never written.
    return {(offset, size) for offset, size in zip(fields["offsets"], fields["sizes"], strict=False) if size}


def _unpacked_bytes(strip: bytes, room: int) -> int:
    """How many bytes a strip unpacks to, at most `room`; they are compared with its checksum and thrown away."""
    unpacker = zlib.decompressobj()
    total = 0
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(strip, _PIECE)
            strip = unpacker.unconsumed_tail
            total += len(piece)
            if total > room:
                raise BrokenFileError("it unpacks to more than its pixels")
            if not piece and not strip and not unpacker.eof:
                raise BrokenFileError("a strip is truncated")
    except zlib.error as error:
        raise BrokenFileError("a strip is not what its checksum says") from error
    return total
