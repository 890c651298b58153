"""The key of a cached embedding: the voxels, the encoder, and its arithmetic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

# Larger ones (long double) contain padding, and differ between machines.
_LARGEST_ITEM = 8
# Providers that compute in half precision or TensorFloat-32 by default.
_COARSER = {"tensorrt", "coreml"}
# Options that change where a provider computes, its memory or threads, but no result.
_HARMLESS = {"device_id", "gpu_mem_limit", "arena_extend_strategy", "num_of_threads", "num_streams", "cache_dir"}


def embedding_key(
    image: npt.NDArray[np.generic],
    intensity_range: tuple[float, float] | None,
    embedding_id: str,
    arithmetic: str = "",
) -> str | None:
    """64 hexadecimal digits for one embedding, the same on every machine; None for images that can't be cached.

    They are the SHA-256 of a line of canonical JSON followed by the voxels, in C order, little-endian.

    Args:
        image: (H, W) or (H, W, 3), of a real dtype. The dtype counts, since profiles treat uint8 differently.
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
        # Kind and size, since numpy has several names for the same type.
        "dtype": f"{pixels.dtype.kind}{pixels.dtype.itemsize}",
        "shape": list(pixels.shape),
        "intensity_range": None if intensity_range is None else [float(value).hex() for value in intensity_range],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    digest.update(pixels.data if pixels.size else b"")
    return digest.hexdigest()


def arithmetic_of(provider: str, options: Mapping[str, str] | None) -> str:
    """The arithmetic of a provider where it differs from the graph's own precision, which the CPU uses; else "".

    Providers that compute in the graph's precision share embeddings, so that one from a GPU serves a laptop. The user's
    options may request a coarser arithmetic (OpenVINO's bf16, CUDA's TensorFloat-32): such embeddings are separate for
    each provider and set of options, except for the few options that can't change a result.
    """
    counting = {name: str(value) for name, value in sorted((options or {}).items()) if name not in _HARMLESS}
    if not counting and provider not in _COARSER:
        return ""
    return json.dumps([provider, counting], separators=(",", ":"))
