"""The embedding of one slice, in memory and as a file that means the same on every machine.

The file is safetensors, little-endian, with a checksum:

    8 bytes    length of the header, unsigned, little-endian
    header     JSON, padded with spaces: two tensors and `__metadata__`
    tensors    `image_embeddings` F16 or F32 (1, C, G, G), then `sha256` U8 (32,): of every byte before it

Metadata, all of it text: `format`, `format_version`, `embedding_id`, `height` and `width` of the slice, `key` (of the
cache entry; empty elsewhere), and `made` (JSON: encoder, provider and versions). Written by hand, since the runtime
needs numpy and ONNX Runtime alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.staging import staged_file

FORMAT = "samri-embedding"
FORMAT_VERSION = "1.0"

StoredPrecision = Literal["fp32", "fp16"]
STORED_PRECISIONS: tuple[StoredPrecision, ...] = get_args(StoredPrecision)

_DTYPES: dict[StoredPrecision, tuple[str, str]] = {"fp32": ("F32", "<f4"), "fp16": ("F16", "<f2")}
_PRECISIONS: dict[str, StoredPrecision] = {kind: precision for precision, (kind, _) in _DTYPES.items()}
_FEATURES, _DIGEST = "image_embeddings", "sha256"
_DIGEST_BYTES = hashlib.sha256().digest_size
_LONGEST_HEADER = 1 << 16
MAX_OVERHEAD = 8 + _LONGEST_HEADER + _DIGEST_BYTES
"""Bytes that a file may take besides the numbers of the embedding."""


class DamagedFileError(ValueError):
    """A file differs from what was written; the text says in a few words how."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """The encoder's output for one slice, from which any number of prompts can be decoded.

    Attributes:
        features: (1, C, G, G) float32, or float16 after `half`. Don't change them: a device may hold a copy.
        shape: (H, W) of the slice, to which prompts and masks refer.
        embedding_id: Identifies the encoder weights, preprocessing and precision.
        cached: Whether it was read from the embedding cache; the encoder graph isn't opened then.
        provenance: SHA-256 of the encoder graph, provider, versions; `made` in files.
        notes: Messages for the user, such as that a cached embedding was damaged.

    Example:
        >>> import numpy as np
        >>> from samri_runtime import Embedding, Predictor
        >>> embedding = Predictor("samri-tiny", "cpu").encode(np.zeros((60, 80)))
        >>> embedding.shape, embedding.features.shape
        ((60, 80), (1, 128, 32, 32))
    """

    features: npt.NDArray[Any]
    shape: tuple[int, int]
    embedding_id: str | None
    cached: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def half(self) -> Embedding:
        """The same embedding as float16, in half the memory: for hosts that keep many slices. Logits change a little.

        Raises:
            ValueError: A number is beyond the range of float16.
        """
        if not fits(self.features, "fp16"):
            raise ValueError("the embedding holds numbers beyond the range of float16: keep it in float32")
        return replace(self, features=self.features.astype(np.float16))

    def save(self, path: str | Path, precision: StoredPrecision = "fp32") -> None:
        """Write a file that `load` reads on any machine. It derives from a patient, so only its owner can read it.

        Args:
            path: Any name; `.safetensors` tells other programs the format.
            precision: `fp16` takes half the space and rounds.

        Raises:
            ValueError: The embedding has no `embedding_id`, or a number is beyond the range of `precision`.
            OutputError: The file can't be written.
        """
        if self.embedding_id is None:
            raise ValueError("an embedding without embedding_id can't be saved: no predictor could check that it fits")
        if not fits(self.features, precision):
            raise ValueError(
                f"the embedding holds numbers beyond the range of {precision}: save it as fp32, or encode again"
            )
        pieces = to_bytes(self, precision)
        with staged_file(path) as staged:
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(pieces)

    @staticmethod
    def load(path: str | Path) -> Embedding:
        """Read a file that `save` wrote, or an entry of the embedding cache.

        Raises:
            InputError: There is no such file, or it is damaged.
        """
        try:
            embedding, _, _ = from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except DamagedFileError as error:
            raise InputError(
                f"{path} is not a valid embedding ({error}): copy it again, or encode the image"
            ) from error
        return embedding


def fits(features: npt.NDArray[np.float32], precision: StoredPrecision) -> bool:
    """Whether all numbers are finite, and stay finite in that precision."""
    largest = float(np.abs(features).max(initial=0.0))  # NaN wherever there is one.
    return math.isfinite(largest) and (precision == "fp32" or largest <= float(np.finfo(np.float16).max))


def rounded(features: npt.NDArray[np.float32], precision: StoredPrecision) -> npt.NDArray[np.float32]:
    """The numbers as a file of that precision holds them, in float32."""
    return features if precision == "fp32" else features.astype(np.float16).astype(np.float32)


def to_bytes(embedding: Embedding, precision: StoredPrecision, key: str = "") -> list[memoryview]:
    """The bytes of the file, in pieces, so that the features aren't copied.

    Args:
        embedding: With an `embedding_id`, and finite in `precision` (see `fits`).
        precision: Precision of the numbers in the file.
        key: Key of the cache entry; empty for any other file.
    """
    name, dtype = _DTYPES[precision]
    data = np.ascontiguousarray(embedding.features, dtype=dtype)
    entries = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "embedding_id": embedding.embedding_id,
            "height": str(embedding.shape[0]),
            "width": str(embedding.shape[1]),
            "key": key,
            "made": json.dumps(dict(embedding.provenance), sort_keys=True),
        },
        _FEATURES: {"dtype": name, "shape": list(data.shape), "data_offsets": [0, data.nbytes]},
        _DIGEST: {
            "dtype": "U8",
            "shape": [_DIGEST_BYTES],
            "data_offsets": [data.nbytes, data.nbytes + _DIGEST_BYTES],
        },
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # Aligns the numbers for vector units in a memory map.
    header = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(header)
    numbers = data.data.cast("B")
    digest.update(numbers)
    return [memoryview(header), numbers, memoryview(digest.digest())]


def from_bytes(data: bytes) -> tuple[Embedding, StoredPrecision, str]:
    """An embedding in float32, its precision in the file and its cache key, from the bytes of a file.

    Raises:
        DamagedFileError: The bytes aren't those of `to_bytes`.
    """
    if len(data) < 8 + _DIGEST_BYTES:
        raise DamagedFileError("it is truncated")
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise DamagedFileError("its checksum is wrong")
    length = int.from_bytes(view[:8], "little")
    if length > _LONGEST_HEADER or 8 + length > len(data) - _DIGEST_BYTES:
        raise DamagedFileError("its header is truncated")
    # The checksum excludes damage, not a file that someone made by hand.
    try:
        return _read(json.loads(bytes(view[8 : 8 + length])), view[8 + length : -_DIGEST_BYTES])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError("its header is invalid") from error


def _read(entries: Any, data: memoryview) -> tuple[Embedding, StoredPrecision, str]:
    metadata, tensor = entries["__metadata__"], entries[_FEATURES]
    version = str(metadata["format_version"])
    if metadata["format"] != FORMAT or version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise DamagedFileError(f"it is not a {FORMAT} {FORMAT_VERSION} file")
    precision = _PRECISIONS[tensor["dtype"]]
    shape = tuple(int(size) for size in tensor["shape"])
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1 or shape[2] != shape[3]:
        raise DamagedFileError("its header is invalid")
    values = np.frombuffer(data, _DTYPES[precision][1]).reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise DamagedFileError("it holds NaN or infinite numbers")
    height, width = int(metadata["height"]), int(metadata["width"])
    if min(height, width) < 1:
        raise DamagedFileError("its header is invalid")
    provenance = {str(name): str(value) for name, value in json.loads(metadata["made"]).items()}
    embedding = Embedding(values, (height, width), str(metadata["embedding_id"]), provenance=provenance)
    return embedding, precision, str(metadata["key"])
