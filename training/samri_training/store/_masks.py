"""Label maps as a store keeps them: at the slice's own size, deflated."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


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
