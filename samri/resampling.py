"""Resizing as matrices: every separable resize of an image is `rows @ image @ columns.T`.

Three kinds are needed to reproduce what the checkpoints were trained on, with numpy alone:

- `pillow_bilinear`: Pillow's antialiased bilinear filter on uint8, bit for bit (fixed-point weights, rounding to uint8
  after each pass). Segment Anything's preprocessing.
- `spline_matrix`: scikit-image's `resize(order=3, anti_aliasing=True)`, a Gaussian and a cubic spline. MedSAM's.
- `bilinear_matrix`: PyTorch's `interpolate(mode="bilinear", align_corners=False)`. The way back from logits.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

_PILLOW_BITS = 32 - 8 - 2  # Fraction bits of Pillow's 8-bit weights (Resample.c: PRECISION_BITS).
_IN_CACHE = 1 << 15  # Pixels whose sums are computed together: all steps of 128 KB stay in a core's cache.


def pillow_bilinear(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize like `PIL.Image.resize((width, height), BILINEAR)`, bit for bit, shrinking included.

    Along the rows first, then down the columns, as in Pillow up to 12.2, which the checkpoints were trained with: only
    an image over a hundred times as high as wide is shrunk the other way round. Later releases choose the order by
    cost, which can move a gray value by one where the two sides shrink by different factors.

    Args:
        image: (H, W) or (H, W, C) uint8.
        height: Rows of the result.
        width: Columns of the result.

    Returns:
        (height, width) or (height, width, C) uint8.
    """
    passes = [(1, width), (0, height)]
    if image.shape[0] > 100 * image.shape[1] and height < image.shape[0]:
        passes.reverse()
    resized = image
    for axis, size in passes:
        if size != resized.shape[axis]:
            resized = _pillow_pass(resized, axis, size)
    return resized


def _pillow_pass(image: npt.NDArray[np.uint8], axis: int, size: int) -> npt.NDArray[np.uint8]:
    """One pass of Pillow's resampling along `axis`: integer weights, half added, shifted, clipped to uint8."""
    first, weights = _pillow_weights(image.shape[axis], size)
    moved = np.moveaxis(image, axis, 0)
    lines = np.ascontiguousarray(moved).reshape(len(moved), -1)
    resized = np.empty((size, lines.shape[1]), dtype=np.uint8)
    at_once = max(_IN_CACHE // lines.shape[1], 1)
    for start in range(0, size, at_once):
        some = slice(start, start + at_once)
        total = np.full(resized[some].shape, 1 << (_PILLOW_BITS - 1), dtype=np.int32)
        for tap in range(weights.shape[1]):
            # A tap past the end has weight 0: any line will do.
            total += lines.take(first[some] + tap, axis=0, mode="clip") * weights[some, tap, None]
        np.clip(total >> _PILLOW_BITS, 0, 255, out=resized[some], casting="unsafe")
    return np.ascontiguousarray(np.moveaxis(resized.reshape(size, *moved.shape[1:]), 0, axis))


@functools.lru_cache(maxsize=32)
def _pillow_weights(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """First source line of each target line and its fixed-point triangle weights: (new,) and (new, taps).

    Source: `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's Resample.c.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    support = 1.0 * stretch
    first = np.zeros(new, dtype=np.intp)
    rows: list[npt.NDArray[np.float64]] = []
    for line in range(new):
        center = (line + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), old)
        distance = np.abs((np.arange(low, high) - center + 0.5) * (1.0 / stretch))
        row = np.where(distance < 1.0, 1.0 - distance, 0.0)
        # Pillow adds the weights one by one; a pairwise sum could differ in the last bit.
        first[line] = low
        rows.append(row / sum(row.tolist()))
    weights = np.zeros((new, max(len(row) for row in rows)), dtype=np.int32)
    for line, row in enumerate(rows):
        weights[line, : len(row)] = (row * (1 << _PILLOW_BITS) + 0.5).astype(np.int32)
    return first, weights


def bilinear_matrix(old: int, new: int) -> npt.NDArray[np.float32]:
    """(new, old) float32 weights of bilinear interpolation with half-pixel centers and no antialiasing."""
    low, high, fraction = bilinear_places(old, new)
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    matrix[rows, low] += 1.0 - fraction
    matrix[rows, high] += fraction
    return matrix.astype(np.float32)


def bilinear_places(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The two source lines of each target line, (new,) each, and the weight of the second one."""
    position = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0.0)
    low = np.minimum(position.astype(np.intp), old - 1)
    return low, np.minimum(low + 1, old - 1), position - low


@functools.lru_cache(maxsize=32)
def spline_matrix(old: int, new: int) -> npt.NDArray[np.float64]:
    """(new, old) float64 weights of scikit-image's `resize(order=3, anti_aliasing=True)` along one axis.

    When it shrinks, a Gaussian of sigma (old / new - 1) / 2, cut at four sigma, comes first. The cubic B-spline is
    evaluated at pixel centers; both see the image mirrored about its first and last pixel (numpy's `reflect`).
    """
    shrink = old / new
    kernel = _spline_kernel()
    if shrink > 1:
        # Both filters are symmetric, so a mirrored image stays mirrored and their kernels may be joined first.
        kernel = np.convolve(kernel, _gaussian_kernel((shrink - 1) / 2))
    position = (np.arange(new) + 0.5) * shrink - 0.5
    start = np.floor(position).astype(np.intp)
    t = position - start
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * (1 - t) ** 3 - 6 * (1 - t) ** 2 + 4, t**3], axis=1) / 6
    radius = len(kernel) // 2
    columns = start[:, None, None] + np.arange(-1, 3)[:, None] + np.arange(-radius, radius + 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None, None], _mirror(columns, old)), basis[:, :, None] * kernel)
    return matrix


def _mirror(index: npt.NDArray[np.intp], length: int) -> npt.NDArray[np.intp]:
    """Indices reflected about the centers of the first and the last pixel."""
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)


def _gaussian_kernel(sigma: float) -> npt.NDArray[np.float64]:
    """Samples of a Gaussian, cut at four sigma, with sum 1."""
    radius = int(4.0 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def _spline_kernel() -> npt.NDArray[np.float64]:
    """From samples to cubic B-spline coefficients: the inverse of the filter (1, 4, 1) / 6.

    Source: Unser, "Splines: a perfect fit for signal and image processing" (1999). It decays by z = sqrt(3) - 2
    a sample, so that thirty samples on either side reach the last digit of a float64.
    """
    z = np.sqrt(3.0) - 2.0
    return np.asarray(-6.0 * z / (1.0 - z * z) * z ** np.abs(np.arange(-30, 31)), dtype=np.float64)
