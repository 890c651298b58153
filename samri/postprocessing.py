"""From low-resolution logits back to the image's own pixels.

Every resize on the way is linear and separable, so each axis is one matrix, made once for an image shape, with at most
three weights a line. They are added up line by line rather than multiplied as matrices: numpy's matrix product starts
threads that wait in a loop, and take the cores from the next prompt's decoder.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.preprocessing import Profile, input_shape
from samri.resampling import bilinear_matrix, bilinear_places

_Taps = tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]


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
    rows, columns = _axis_taps(low_res.shape[-1], shape, profile, image_size)
    if profile.upscale == "probabilities-direct":
        probability = _resized(_sigmoid(low_res), rows, columns)
        inside = np.clip(probability, np.float32(1e-7), np.float32(1 - 1e-7))
        return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float32)
    return _resized(np.asarray(low_res, dtype=np.float32), rows, columns)


def _sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    # Through tanh, which can't overflow.
    return np.asarray(0.5 * (np.tanh(0.5 * logits) + 1.0), dtype=np.float32)


def _resized(values: npt.NDArray[np.float32], rows: _Taps, columns: _Taps) -> npt.NDArray[np.float32]:
    """(..., L, L) -> (..., H, W). Mask by mask, which stays in the cache; columns first, so that only the small arrays
    are transposed.
    """
    stack = values.reshape(-1, *values.shape[-2:])
    resized = np.empty((len(stack), len(rows[0]), len(columns[0])), dtype=np.float32)
    for mask, target in zip(stack, resized, strict=True):
        across = np.empty((len(columns[0]), len(mask)), dtype=np.float32)
        _along_rows(np.ascontiguousarray(mask.T), columns, across)
        _along_rows(np.ascontiguousarray(across.T), rows, target)
    return resized.reshape(*values.shape[:-2], *resized.shape[1:])


def _along_rows(lines: npt.NDArray[np.float32], taps: _Taps, target: npt.NDArray[np.float32]) -> None:
    first, weights = taps
    np.multiply(lines[first], weights[:, :1], out=target)
    for tap in range(1, weights.shape[1]):
        # A tap past the end has weight 0: any line will do.
        more = lines.take(first + tap, axis=0, mode="clip")
        more *= weights[:, tap : tap + 1]
        target += more


@functools.lru_cache(maxsize=32)
def _axis_taps(low: int, shape: tuple[int, int], profile: Profile, image_size: int) -> tuple[_Taps, _Taps]:
    """Rows and columns: the whole way from low resolution to the image."""
    if profile.upscale == "probabilities-direct":
        return _taps(bilinear_matrix(low, shape[0])), _taps(bilinear_matrix(low, shape[1]))
    to_square = bilinear_matrix(low, image_size).astype(np.float64)
    filled = input_shape(shape, profile, image_size)
    rows, columns = (_composed(to_square[:inside], new) for inside, new in zip(filled, shape, strict=True))
    return _taps(rows), _taps(columns)


def _composed(first: npt.NDArray[np.float64], new: int) -> npt.NDArray[np.float64]:
    """The matrix of `first`, (S, L), and then a bilinear resize of S lines to `new`."""
    low, high, fraction = bilinear_places(len(first), new)
    return first[low] * (1 - fraction[:, None]) + first[high] * fraction[:, None]


def _taps(matrix: npt.NDArray[Any]) -> _Taps:
    """First source line of each target line and the weights from there on: (new,) and (new, taps) float32."""
    nonzero = matrix != 0
    first = nonzero.argmax(axis=1)
    last = matrix.shape[1] - 1 - nonzero[:, ::-1].argmax(axis=1)
    places = first[:, None] + np.arange(int((last - first).max()) + 1)
    inside = np.minimum(places, matrix.shape[1] - 1)
    weights = np.where(places <= last[:, None], np.take_along_axis(matrix, inside, axis=1), 0)
    return first, weights.astype(np.float32)
