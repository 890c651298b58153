"""One embedding as a file that means the same on every machine: safetensors, little-endian, with a checksum.

    8 bytes    length of the header, unsigned, little-endian
    header     JSON, padded with spaces: two tensors and `__metadata__`
    tensors    `image_embeddings` F16 or F32 (1, C, G, G), then `sha256` U8 (32,): of every byte before it

Metadata, all of it text: `format`, `format_version`, `embedding_id`, `height` and `width` of the slice, `key` (of the
cache's entry; empty elsewhere), and `made` (JSON: how the embedding came about).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

FORMAT = "samri-embedding"
FORMAT_VERSION = "1.0"

StoredPrecision = Literal["fp32", "fp16"]
STORED_PRECISIONS: tuple[StoredPrecision, ...] = get_args(StoredPrecision)

_DTYPES: dict[StoredPrecision, tuple[str, str]] = {"fp32": ("F32", "<f4"), "fp16": ("F16", "<f2")}
_PRECISIONS: dict[str, StoredPrecision] = {kind: precision for precision, (kind, _) in _DTYPES.items()}
_FEATURES, _DIGEST = "image_embeddings", "sha256"
_DIGEST_BYTES = hashlib.sha256().digest_size
_LONGEST_HEADER = 1 << 16
# What a file may take beside the embedding itself.
MOST_OVERHEAD = 8 + _LONGEST_HEADER + _DIGEST_BYTES


class DamagedFileError(ValueError):
    """A file isn't what was written; the text says in a few words what is wrong."""


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """What a file holds.

    Attributes:
        features: (1, C, G, G) float32, whatever the precision of the file.
        precision: Of the file.
        shape: (H, W) of the slice.
        embedding_id: Which encoder, preprocessing and precision made it.
        key: Of the cache's entry, or empty.
        made: How it came about: the encoder's SHA-256, provider, versions.
    """

    features: npt.NDArray[np.float32]
    precision: StoredPrecision
    shape: tuple[int, int]
    embedding_id: str
    key: str
    made: Mapping[str, str]


def fits(features: npt.NDArray[np.float32], precision: StoredPrecision) -> bool:
    """Whether all numbers are finite, and stay so in that precision."""
    largest = float(np.abs(features).max(initial=0.0))  # NaN wherever there is one.
    return math.isfinite(largest) and (precision == "fp32" or largest <= float(np.finfo(np.float16).max))


def rounded(features: npt.NDArray[np.float32], precision: StoredPrecision) -> npt.NDArray[np.float32]:
    """The numbers that reading the file will give: the same ones, or the nearest in half precision."""
    return features if precision == "fp32" else features.astype(np.float16).astype(np.float32)


def pack(stored: StoredEmbedding) -> list[memoryview]:
    """The pieces of the file, in order."""
    name, dtype = _DTYPES[stored.precision]
    data = np.ascontiguousarray(stored.features, dtype=dtype)
    entries = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "embedding_id": stored.embedding_id,
            "height": str(stored.shape[0]),
            "width": str(stored.shape[1]),
            "key": stored.key,
            "made": json.dumps(dict(stored.made), sort_keys=True),
        },
        _FEATURES: {"dtype": name, "shape": list(data.shape), "data_offsets": [0, data.nbytes]},
        _DIGEST: {
            "dtype": "U8",
            "shape": [_DIGEST_BYTES],
            "data_offsets": [data.nbytes, data.nbytes + _DIGEST_BYTES],
        },
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # So that a memory map has the numbers where vector units like them.
    header = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(header)
    numbers = data.data.cast("B")
    digest.update(numbers)
    return [memoryview(header), numbers, memoryview(digest.digest())]


def unpack(data: bytes) -> StoredEmbedding:
    """Read a file's bytes.

    Raises:
        DamagedFileError: They aren't what `pack` gives.
    """
    if len(data) < 8 + _DIGEST_BYTES:
        raise DamagedFileError("it is cut off")
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise DamagedFileError("its checksum is wrong")
    length = int.from_bytes(view[:8], "little")
    if length > _LONGEST_HEADER or 8 + length > len(data) - _DIGEST_BYTES:
        raise DamagedFileError("its header is cut off")
    # A right checksum says that nothing was damaged, not that nobody made it by hand.
    try:
        return _read(json.loads(bytes(view[8 : 8 + length])), view[8 + length : -_DIGEST_BYTES])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError("its header makes no sense") from error


def _read(entries: Any, data: memoryview) -> StoredEmbedding:
    metadata, tensor = entries["__metadata__"], entries[_FEATURES]
    version = str(metadata["format_version"])
    if metadata["format"] != FORMAT or version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise DamagedFileError(f"it is no {FORMAT} {FORMAT_VERSION} file")
    precision = _PRECISIONS[tensor["dtype"]]
    shape = tuple(int(size) for size in tensor["shape"])
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1 or shape[2] != shape[3]:
        raise DamagedFileError("its header makes no sense")
    values = np.frombuffer(data, _DTYPES[precision][1]).reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise DamagedFileError("it holds NaN or infinite numbers")
    height, width = int(metadata["height"]), int(metadata["width"])
    if min(height, width) < 1:
        raise DamagedFileError("its header makes no sense")
    made = {str(name): str(value) for name, value in json.loads(metadata["made"]).items()}
    return StoredEmbedding(
        values, precision, (height, width), str(metadata["embedding_id"]), str(metadata["key"]), made
    )
