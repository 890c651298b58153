"""Low-resolution targets: masks of a slice on the grid of the decoder's logits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samri.preprocessing import Profile, input_shape
from samri_training.train._settings import Targets

LowRes: TypeAlias = npt.NDArray[np.bool_] | npt.NDArray[np.float32]
"""(L, L): bool, or with `coverage` 0 to 1."""

_EPSILON = 1e-9  # Coverage is a sum of fractions; one half must not exceed one half by a rounding error.


def low_res_target(
    mask: npt.NDArray[np.bool_], profile: Profile, image_size: int, low_res: int, method: Targets
) -> LowRes:
    """The target of one mask: (H, W) bool -> (L, L), False or 0 in the padding. It can come out empty.

    A pixel of the L x L logits covers a rectangle of the slice (S / L pixels of the model frame, scaled as inference
    scales). `area`: more than half of that rectangle is mask. `coverage`: the share of it that is, in float32, so that
    outlines finer than the logits' grid are learnt. `nearest-exact`: the mask's pixel under its centre; PyTorch's
    `nearest` takes the one under its corner, which shifts targets.

    Args:
        mask: (H, W) bool.
        profile: Decides how the slice lies in the model frame.
        image_size: S.
        low_res: L, four times the embedding's grid.
        method: `area`, `coverage` or `nearest-exact`.
    """
    height, width = mask.shape
    filled = input_shape((height, width), profile, image_size)
    down, across = (_edges(side, fill, image_size, low_res) for side, fill in zip(mask.shape, filled, strict=True))
    if method == "nearest-exact":
        return _at_centres(_at_centres(mask, down).T, across).T
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros((low_res, low_res), dtype=np.float32 if method == "coverage" else np.bool_)
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    covered = _shares(_shares(inside, down - rows[0]).T, across - columns[0]).T
    if method == "coverage":
        return np.ascontiguousarray(covered, dtype=np.float32)
    return np.ascontiguousarray(covered > 0.5 + _EPSILON)


def connected_parts(mask: npt.NDArray[Any], smallest: int) -> npt.NDArray[np.int32]:
    """A label map with a label of its own for each connected part of each label; pixels are connected by their sides.

    A box around a label in two places is mostly something else, and a point says nothing of the other place.

    Args:
        mask: (H, W) label map, 0 background.
        smallest: Pixels of the smallest part that is left; smaller ones become background.

    Returns:
        (H, W), numbered label by label from the top; 0 where nothing is left.
    """
    from scipy.ndimage import label

    parts = np.zeros(mask.shape, dtype=np.int32)
    count = 0
    for value in np.unique(mask[mask > 0]):
        components, _ = label(mask == value)
        numbers = np.flatnonzero(np.bincount(components.ravel())[1:] >= max(smallest, 1)) + 1
        renumbered = np.zeros(components.max() + 1, dtype=np.int32)
        renumbered[numbers] = np.arange(count + 1, count + len(numbers) + 1)
        parts += renumbered[components]
        count += len(numbers)
    return parts


def _edges(length: int, filled: int, image_size: int, low_res: int) -> npt.NDArray[np.float64]:
    """(L + 1,) edges of the low-resolution pixels along one axis, in pixels of the slice; beyond it in the padding."""
    return np.asarray(np.arange(low_res + 1) * (image_size / low_res) * (length / filled), dtype=np.float64)


def _shares(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, m) -> (L, m): the mean of `values` between each two edges along the first axis; 0 outside of them.

    Differences of running sums: a product with a matrix of shares is many times the work, and starts numpy's threads
    beside PyTorch's.
    """
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])
    places = np.clip(edges, 0, len(values))
    whole = np.minimum(places.astype(np.intp), len(values) - 1)
    up_to = sums[whole] + (places - whole)[:, None] * values[whole]
    return np.asarray(np.diff(up_to, axis=0) / (edges[1] - edges[0]), dtype=np.float64)


def _at_centres(mask: npt.NDArray[np.bool_], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n, m) -> (L, m): the row in which the centre between each two edges lies; False where there is none."""
    nearest = np.floor((edges[:-1] + edges[1:]) / 2).astype(np.intp)
    there = nearest < len(mask)
    return np.asarray(mask[np.where(there, nearest, 0)] & there[:, None], dtype=np.bool_)
