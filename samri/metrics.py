"""How far two masks agree: Dice and IoU, for every part of the project that compares masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def dice(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks, 2 |A and B| / (|A| + |B|), from 0 to 1; 1 if both are empty.

    Args:
        first: bool array of any shape.
        second: bool array of the same shape.

    Raises:
        ValueError: The shapes differ.
    """
    common, pixels = _counts(first, second)
    return 2 * common / pixels if pixels else 1.0


def iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, |A and B| / |A or B|, from 0 to 1; 1 if both are empty.

    Args:
        first: bool array of any shape.
        second: bool array of the same shape.

    Raises:
        ValueError: The shapes differ.
    """
    common, pixels = _counts(first, second)
    return common / (pixels - common) if pixels else 1.0


def _counts(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """|A and B|, and |A| + |B|."""
    if first.shape != second.shape:
        raise ValueError(f"masks of shapes {first.shape} and {second.shape} can't be compared")
    pixels = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return int(np.count_nonzero(first & second)), pixels
