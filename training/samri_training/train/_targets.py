"""Low-resolution targets: masks of a slice on the grid of the decoder's logits."""

from __future__ import annotations

import functools
from typing import TypeAlias

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
    target: LowRes = np.zeros((low_res, low_res), dtype=np.float32 if method == "coverage" else np.bool_)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return target
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    filled = input_shape((mask.shape[0], mask.shape[1]), profile, image_size)
    weigh = _centres if method == "nearest-exact" else _coverage
    down = weigh(mask.shape[0], filled[0], image_size, low_res)[:, inside[0]]
    across = weigh(mask.shape[1], filled[1], image_size, low_res)[:, inside[1]]
    covered = down @ mask[inside].astype(np.float64) @ across.T
    if method == "coverage":
        return np.asarray(covered, dtype=np.float32)
    return np.asarray(covered > 0.5 + _EPSILON)


def _edges(length: int, filled: int, image_size: int, low_res: int) -> npt.NDArray[np.float64]:
    """(L + 1,) edges of the low-resolution pixels along one axis, in pixels of the slice; beyond it in the padding."""
    return np.asarray(np.arange(low_res + 1) * (image_size / low_res) * (length / filled), dtype=np.float64)


@functools.lru_cache(maxsize=64)
def _coverage(length: int, filled: int, image_size: int, low_res: int) -> npt.NDArray[np.float64]:
    """(L, length): the share of each low-resolution pixel that each pixel of the slice covers."""
    edges = _edges(length, filled, image_size, low_res)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(overlap, 0.0) / (edges[1] - edges[0]), dtype=np.float64)


@functools.lru_cache(maxsize=64)
def _centres(length: int, filled: int, image_size: int, low_res: int) -> npt.NDArray[np.float64]:
    """(L, length): 1 at the pixel of the slice in which each low-resolution pixel's centre lies."""
    edges = _edges(length, filled, image_size, low_res)
    nearest = np.floor((edges[:-1] + edges[1:]) / 2)
    return np.asarray(nearest[:, None] == np.arange(length), dtype=np.float64)
