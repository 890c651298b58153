"""From low-resolution logits back to the image's own pixels.

Every resize on the way is linear and separable, so each axis is one small matrix, made once for an image shape, and a
mask costs two matrix products.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from samri.preprocessing import Profile, input_shape
from samri.resampling import bilinear_matrix


def upscale_logits(
    low_res: npt.NDArray[np.float32], shape: tuple[int, int], profile: Profile, image_size: int
) -> npt.NDArray[np.float32]:
    """Logits at the image's size; the mask is where they are above 0.

    `sam` and `samri`: bilinear to S x S, cropped to the part that the image fills, bilinear to (H, W). `medsam`: the
    sigmoid first, then bilinear straight to (H, W); the logit of that probability is returned, so that 0 is the
    threshold here too.

    Args:
        low_res: (..., L, L) float32 logits of the decoder.
        shape: (H, W) of the original slice.
        profile: The bundle's profile.
        image_size: S.

    Returns:
        (..., H, W) float32.
    """
    rows, columns = _axis_matrices(low_res.shape[-1], shape, profile, image_size)
    if profile.upscale == "probabilities-direct":
        probability = rows @ _sigmoid(low_res) @ columns.T
        inside = np.clip(probability, np.float32(1e-7), np.float32(1 - 1e-7))
        return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float32)
    return np.asarray(rows @ low_res @ columns.T, dtype=np.float32)


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # Through tanh, which can't overflow.
    return np.asarray(0.5 * (np.tanh(0.5 * logits) + 1.0), dtype=np.float32)


@functools.lru_cache(maxsize=32)
def _axis_matrices(
    low: int, shape: tuple[int, int], profile: Profile, image_size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(H, low) and (W, low): the whole way from low resolution to the image, one matrix an axis."""
    if profile.upscale == "probabilities-direct":
        return bilinear_matrix(low, shape[0]), bilinear_matrix(low, shape[1])
    to_square = bilinear_matrix(low, image_size)
    filled = input_shape(shape, profile, image_size)
    rows = bilinear_matrix(filled[0], shape[0]) @ to_square[: filled[0]]
    columns = bilinear_matrix(filled[1], shape[1]) @ to_square[: filled[1]]
    return rows, columns
