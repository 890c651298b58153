"""Whether a structure can be seen at all: its contrast to what surrounds it, against the noise of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RING = 3.0  # Width of the surroundings, in pixels of a slice whose longest side has FRAME.
FRAME = 256
VISIBLE = 1.0


def contrast_to_noise(image: npt.NDArray[Any], structure: npt.NDArray[np.bool_]) -> float:
    """CNR = |mean(inside) - mean(ring)| / sqrt((var(inside) + var(ring)) / 2).

    The ring holds the pixels outside the structure that are at most 3 pixels (Euclidean, between pixel centers) from
    one of its own, in a slice whose longest side has 256. Without noise the CNR is infinite, or 0 where the means are
    equal too; without surroundings it is 0. Both variances weigh the same, so that a large structure can't outweigh a
    ring that looks like it along a part of its outline.

    It is defined apart from what training takes for visible: another training must not change the test.

    Args:
        image: (H, W).
        structure: (H, W) bool, not empty.
    """
    from scipy.ndimage import distance_transform_edt

    width = max(RING * max(image.shape) / FRAME, 1.0)
    near = _widened(np.asarray(structure.any(axis=1)), width), _widened(np.asarray(structure.any(axis=0)), width)
    inside, pixels = structure[near], image[near].astype(np.float64)
    ring = ~inside & (distance_transform_edt(~inside) <= width)
    within, around = pixels[inside], pixels[ring]
    if not around.size:
        return 0.0
    contrast = abs(float(within.mean() - around.mean()))
    noise = float(np.sqrt((within.var() + around.var()) / 2))
    if noise == 0:
        return float("inf") if contrast > 0 else 0.0
    return contrast / noise


def _widened(used: npt.NDArray[np.bool_], width: float) -> slice:
    """Where a structure lies along an axis, and its surroundings with it."""
    places = np.flatnonzero(used)
    margin = int(np.ceil(width))
    return slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1)
