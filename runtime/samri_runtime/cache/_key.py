"""What decides whether two embeddings are the same: the voxels, the encoder, and how it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

# Larger ones (long double) hold padding, and differ from one machine to the next.
_LARGEST_ITEM = 8
# They compute in half precision or TensorFloat-32 unless told otherwise.
_COARSER = {"tensorrt", "coreml"}
# Where a provider computes and what memory and threads it takes doesn't change what comes out.
_HARMLESS = {"device_id", "gpu_mem_limit", "arena_extend_strategy", "num_of_threads", "num_streams", "cache_dir"}


def embedding_key(
    image: npt.NDArray[np.generic],
    intensity_range: tuple[float, float] | None,
    embedding_id: str,
    arithmetic: str = "",
) -> str | None:
    """64 hexadecimal digits for one embedding; the same on every machine. None for what can't be kept.

    The SHA-256 of a line of canonical JSON and of the voxels behind it, in C order, little-endian.

    Args:
        image: (H, W) or (H, W, 3), of a real dtype. The dtype counts: profiles treat uint8 in their own way.
        intensity_range: As for `Predictor.encode`.
        embedding_id: The manifest's: encoder weights, profile, image size and precision.
        arithmetic: From `arithmetic_of`.
    """
    if image.dtype.kind not in "buif" or image.dtype.itemsize > _LARGEST_ITEM:
        return None
    pixels = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<"))
    facts = {
        "format": "samri-embedding-key 1",
        "embedding_id": embedding_id,
        "arithmetic": arithmetic,
        # The kind and size, since numpy spells the same type in several ways.
        "dtype": f"{pixels.dtype.kind}{pixels.dtype.itemsize}",
        "shape": list(pixels.shape),
        "intensity_range": None if intensity_range is None else [float(value).hex() for value in intensity_range],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    digest.update(pixels.data if pixels.size else b"")
    return digest.hexdigest()


def arithmetic_of(provider: str, options: Mapping[str, str] | None) -> str:
    """How a provider computes, if not in the graph's own precision as the CPU does; else an empty text.

    Providers that keep to the graph's precision share their embeddings, so that one made on a GPU serves a laptop.
    Options of the user's may ask for a coarser arithmetic (OpenVINO's bf16, CUDA's TensorFloat-32): such embeddings are
    kept apart, each by its provider and options, except for the few options that can't change a number.
    """
    counting = {name: str(value) for name, value in sorted((options or {}).items()) if name not in _HARMLESS}
    if not counting and provider not in _COARSER:
        return ""
    return json.dumps([provider, counting], separators=(",", ":"))
