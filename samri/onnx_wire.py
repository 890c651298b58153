"""Which files beside it an ONNX graph would open, read from the protobuf bytes without the onnx package.

ONNX Runtime opens a graph's external data by the path that the graph itself holds. A bundle may come from anywhere, so
those paths are read first, and a bundle whose manifest doesn't list one of them is refused.

ONNX Runtime's own check doesn't replace this. Releases 1.22 and 1.23, the last for Python 3.10, open `../weights`,
absolute paths and links that leave the folder; 1.24 and later refuse those (tried up to 1.30), but open a hard link, or
any file of the folder, so that weights which nobody hashed would be used. What a graph refers to stands nowhere but in
the graph, and reading it with the onnx package would make that, and protobuf, a dependency of every host.

Only the fields that can lead to a tensor are followed; everything else is stepped over, so
that a graph of hundreds of megabytes is scanned in a moment through a memory map.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from samri.errors import BundleError

# Message -> {field number: message inside}, from onnx.proto (IR version 10). A tensor can sit in a graph's
# initializers, in a node's attribute, in a subgraph, in a function, or in a training section.
_FOLLOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_KEY, _VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64


def external_locations(path: Path) -> set[str]:
    """The `location` of every external tensor that the ONNX file at `path` refers to.

    Raises:
        BundleError: The file isn't a whole protobuf message.
    """
    if path.stat().st_size == 0:
        raise BundleError(f"{path} is empty: copy the bundle again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_locations(data, 0, len(data), "model", 0))
        except (IndexError, ValueError) as error:
            raise BundleError(f"{path} is not an ONNX graph, or is truncated: copy the bundle again") from error


def _locations(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    for number, first, last in _length_delimited_fields(data, start, end):
        inside = _FOLLOW[message].get(number)
        if inside == "entry":
            key, value = _entry(data, first, last)
            if key == "location":
                yield value
        elif inside is not None:
            yield from _locations(data, first, last, inside, depth + 1)


def _entry(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    fields = {number: data[first:last].decode() for number, first, last in _length_delimited_fields(data, start, end)}
    return fields.get(_KEY, ""), fields.get(_VALUE, "")


def _length_delimited_fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, first byte and end of every length-delimited field; other fields are stepped over.

    Stricter than protobuf's own readers, which forgive what no writer produces and each in its own way: only numbers in
    their shortest form, no field that runs past its message, no groups.
    """
    position = start
    while position < end:
        tag, position = _number(data, position, largest=(1 << 32) - 1)
        wire_type = tag & 7
        if tag >> 3 == 0:
            raise ValueError("field number 0")
        if wire_type == _BYTES:
            length, position = _number(data, position, largest=(1 << 31) - 1)
            if position + length > end:
                raise ValueError("a field runs past its message")
            yield tag >> 3, position, position + length
            position += length
        elif wire_type == _VARINT:
            position = _after_varint(data, position)
        elif wire_type == _FIXED64:
            position += 8
        elif wire_type == _FIXED32:
            position += 4
        else:
            raise ValueError(f"wire type {wire_type}")
    if position != end:
        raise ValueError("a field runs past its message")


def _number(data: mmap.mmap, position: int, largest: int) -> tuple[int, int]:
    """A tag or a length, and the position after it."""
    if data[position] < 0x80:  # Nearly all of them; none is larger than `largest`.
        return data[position], position + 1
    end = _after_varint(data, position)
    value = sum((data[at] & 0x7F) << (7 * (at - position)) for at in range(position, end))
    if value > largest or (end - position > 1 and data[end - 1] == 0):
        raise ValueError("an oversized tag or length")
    return value, end


def _after_varint(data: mmap.mmap, position: int) -> int:
    for end in range(position + 1, position + 11):
        if data[end - 1] < 0x80:
            return end
    raise ValueError("a number longer than ten bytes")
