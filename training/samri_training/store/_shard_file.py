"""One shard: a safetensors file of fixed layout, so that it can be written in place and read through a memory map.

The header has a fixed size, padded with spaces as the format allows; so the embeddings begin at byte 4096, on a page,
before it is known how long the masks behind them will be. The tensors, in file order:

    features   F16 or F32 (n, C, G, G)
    masks      U8 (bytes,)   deflated label maps, one after the other, padded to a multiple of 8
    spacing    F64 (n, 2)    row and column distance in mm
    mask_ends  I64 (n,)      where each map ends in `masks`
    sizes      I32 (n, 3)    height, width, bytes per pixel of the label map
    crc32      U32 (n,)      of a slice's embedding, then its deflated map
    names      U8 (bytes,)   JSON: [[name, case], ...]
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.opening import open_regular
from samri_training.store._info import StoreInfo

HEADER_BYTES = 4096
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "<u1"}
_NAMES = {np.dtype(numpy): name for name, numpy in _TYPES.items()}
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class SliceEntry:
    """One slice's entry in a shard's tables: everything but the embedding and the mask's pixels.

    Attributes:
        name: Name of the slice.
        case: The patient or scan it belongs to.
        shape: (H, W).
        spacing: (row, column) distance in mm.
        mask_bytes: Length of the deflated label map.
        mask_itemsize: Bytes a pixel.
        crc32: CRC-32 of the embedding and the deflated map.
    """

    name: str
    case: str
    shape: tuple[int, int]
    spacing: tuple[float, float]
    mask_bytes: int
    mask_itemsize: int
    crc32: int


def tables(rows: list[SliceEntry]) -> dict[str, npt.NDArray[Any]]:
    """The small tensors behind the masks, by name, in file order."""
    names = json.dumps([[row.name, row.case] for row in rows]).encode()
    return {
        "spacing": np.array([row.spacing for row in rows], "<f8").reshape(-1, 2),
        "mask_ends": np.cumsum([row.mask_bytes for row in rows], dtype="<i8"),
        "sizes": np.array([(*row.shape, row.mask_itemsize) for row in rows], "<i4").reshape(-1, 3),
        "crc32": np.array([row.crc32 for row in rows], "<u4"),
        "names": np.frombuffer(names, np.uint8),
    }


def header(layout: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The first `HEADER_BYTES` of a safetensors file whose tensors follow each other in the order of `layout`."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, (dtype, shape) in layout.items():
        end = begin + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = HEADER_BYTES - 8
    assert len(text) <= length, "a shard's header is a few hundred bytes"
    return length.to_bytes(8, "little") + text.ljust(length)


def tables_digest(content: mmap.mmap, mask_bytes: int, info: StoreInfo, count: int) -> str:
    """SHA-256 of all of a shard that no slice's own checksum covers: its header, and the tables behind the masks."""
    digest = hashlib.sha256(content[:HEADER_BYTES])
    digest.update(content[HEADER_BYTES + count * info.bytes_per_slice + mask_bytes :])
    return digest.hexdigest()


class ShardFile:
    """A finished shard, mapped into memory: pages are read when they are touched.

    Args:
        path: The file.
        info: What the store says of itself.
        count: How many slices the file must hold.
        tables_sha256: What `tables_digest` gave when the file was written; None compares nothing.

    Raises:
        InputError: It can't be read, or isn't the shard that it should be.
    """

    def __init__(self, path: Path, info: StoreInfo, count: int, tables_sha256: str | None = None) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:  # mmap refuses an empty file.
            raise self._damaged("it is empty") from error
        tensors = self._tensors(info)
        expected = {
            "features": (info.numpy_dtype, (count, *info.embedding_shape)),
            "masks": (np.dtype("<u1"), None),
            "spacing": (np.dtype("<f8"), (count, 2)),
            "mask_ends": (np.dtype("<i8"), (count,)),
            "sizes": (np.dtype("<i4"), (count, 3)),
            "crc32": (np.dtype("<u4"), (count,)),
            "names": (np.dtype("<u1"), None),
        }
        for name, (dtype, shape) in expected.items():
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != dtype or tensor.shape != (shape or (tensor.size,)):
                raise self._damaged(f"its header describes no {name} of {count} slices")
        if (
            tables_sha256 is not None
            and tables_digest(self._map, tensors["masks"].nbytes, info, count) != tables_sha256
        ):
            raise self._damaged("its header or one of its tables")
        self.features: npt.NDArray[Any] = tensors["features"]
        self._masks, self._names = tensors["masks"], tensors["names"]
        self._spacing, self._ends = tensors["spacing"], tensors["mask_ends"]
        self._sizes, self._crc32 = tensors["sizes"], tensors["crc32"]

    def row(self, index: int) -> SliceEntry:
        """Facts on one slice."""
        name, case = self._name_table[index]
        height, width, itemsize = (int(size) for size in self._sizes[index])
        begin, end = self._mask_span(index)
        row, column = (float(distance) for distance in self._spacing[index])
        if not (0 < row < np.inf and 0 < column < np.inf):
            raise self._damaged("its table of spacing")
        return SliceEntry(name, case, (height, width), (row, column), end - begin, itemsize, int(self._crc32[index]))

    def names(self) -> list[tuple[str, str]]:
        """(name, case) of every slice."""
        return self._name_table

    @cached_property
    def _name_table(self) -> list[tuple[str, str]]:
        try:
            pairs = [(name, case) for name, case in json.loads(self._names.tobytes())]
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged("its table of names") from error
        if len(pairs) != len(self.features) or not all(type(text) is str for pair in pairs for text in pair):
            raise self._damaged("its table of names")
        return pairs

    def mask(self, index: int) -> npt.NDArray[Any]:
        """(H, W) label map, uint8 or uint16.

        Raises:
            InputError: The file is damaged there.
        """
        begin, end = self._mask_span(index)
        height, width, itemsize = (int(size) for size in self._sizes[index])
        try:
            return unpack_mask(self._masks[begin:end].tobytes(), (height, width), itemsize)
        except (ValueError, TypeError) as error:
            raise self._damaged(f"the mask of slice {index}") from error

    def check(self, index: int) -> None:
        """The checksum of one slice is right.

        Raises:
            InputError: It isn't.
        """
        begin, end = self._mask_span(index)
        crc = zlib.crc32(self._masks[begin:end].data, zlib.crc32(self.features[index].data))
        if crc != int(self._crc32[index]):
            raise self._damaged(f"slice {index} fails its checksum")

    def read_ahead(self, index: int) -> None:
        """Ask the system to fetch one embedding as a whole, rather than page by page as it is touched."""
        if hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED, *self._pages(index))

    def release(self, index: int) -> None:
        """This process is done with an embedding for now: it stays in the system's cache, not in our memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, *self._pages(index))

    def _pages(self, index: int) -> tuple[int, int]:
        """Start, at a page, and length of an embedding in the map."""
        size = self.features[index].nbytes
        begin = (HEADER_BYTES + index * size) // mmap.PAGESIZE * mmap.PAGESIZE
        return begin, HEADER_BYTES + (index + 1) * size - begin

    def _mask_span(self, index: int) -> tuple[int, int]:
        begin = int(self._ends[index - 1]) if index else 0
        end = int(self._ends[index])
        if not 0 <= begin <= end <= len(self._masks):
            raise self._damaged("its table of masks")
        return begin, end

    def _tensors(self, info: StoreInfo) -> dict[str, npt.NDArray[Any]]:
        length = int.from_bytes(self._map[:8], "little")
        if length > _LONGEST_HEADER or 8 + length > len(self._map):
            raise self._damaged("its header is truncated")
        try:
            entries = json.loads(self._map[8 : 8 + length])
            metadata = entries.pop("__metadata__")
            if metadata["embedding_id"] != info.embedding_id:
                raise InputError(
                    f"{self.path} was made by another encoder than the rest of its store ({metadata['checkpoint']}): "
                    "put the store's own shard back, or delete it and run samri-embed again"
                )
            return {name: self._tensor(8 + length, entry) for name, entry in entries.items()}
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged("its header") from error

    def _tensor(self, base: int, entry: Any) -> npt.NDArray[Any]:
        dtype, shape = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        # numpy itself refuses what would reach beyond the map.
        if end - begin != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize or begin < 0:
            raise ValueError("a tensor's bytes don't match its shape")
        return np.ndarray(shape, dtype, buffer=self._map, offset=base + begin)

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path} is damaged ({what}): delete it and run samri-embed again, or copy it again")


def pack_mask(mask: npt.NDArray[Any]) -> tuple[bytes, int]:
    """Deflate an (H, W) label map; returns its bytes and how many bytes a pixel had: 1, or 2 for labels above 255."""
    dtype = "<u1" if not mask.size or int(mask.max()) <= 255 else "<u2"
    return zlib.compress(mask.astype(dtype).tobytes(), level=6), np.dtype(dtype).itemsize


def unpack_mask(packed: bytes, shape: tuple[int, int], itemsize: int) -> npt.NDArray[Any]:
    """The (H, W) label map behind `packed`, uint8 or uint16.

    Raises:
        ValueError: The bytes aren't a label map of that shape.
    """
    size = shape[0] * shape[1] * itemsize
    inflater = zlib.decompressobj()
    try:
        pixels = inflater.decompress(packed, max(size, 1))  # 0 would mean no limit.
    except zlib.error as error:
        raise ValueError(str(error)) from error
    # The end mark and the checksum may still be waiting when all pixels are out.
    if len(pixels) != size or inflater.decompress(inflater.unconsumed_tail, 1) or not inflater.eof:
        raise ValueError("not as many pixels as the slice has")
    return np.frombuffer(pixels, dtype=f"<u{itemsize}").reshape(shape)
