"""What a sceptic would try instead of a model: shapes and thresholds that a box alone gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def filled_ellipse(box: npt.ArrayLike, shape: tuple[int, int]) -> Mask:
    """The ellipse that touches the four sides of a box: pixels whose centers lie in it.

    Args:
        box: (4,) XYXY at pixel edges.
        shape: (H, W) of the mask.
    """
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
    across = (np.arange(shape[1]) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    down = (np.arange(shape[0]) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    inside: Mask = down[:, None] ** 2 + across[None, :] ** 2 <= 1
    return inside


def otsu_in_box(image: npt.NDArray[Any], box: npt.ArrayLike) -> Mask:
    """Otsu's threshold of the pixels in a box, and of them the side on which the box's center lies.

    Args:
        image: (H, W).
        box: (4,) XYXY at pixel edges; a pixel belongs to it if its center does.
    """
    rows, columns = pixels_in_box(box, image.shape)
    values = image[rows, columns].astype(np.float64)
    high = values > otsu_threshold(values)
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
    row = min(max(int((y1 + y2) / 2), rows.start), rows.stop - 1) - rows.start
    column = min(max(int((x1 + x2) / 2), columns.start), columns.stop - 1) - columns.start
    mask = np.zeros(image.shape, dtype=np.bool_)
    mask[rows, columns] = high if high[row, column] else ~high
    return mask


def otsu_threshold(values: npt.NDArray[np.float64]) -> float:
    """The value that splits others into two classes, up to it and above it, with the most variance between them.

    Every value is tried, without a histogram's bins. Of equal splits the lowest counts. Source: Otsu, 1979.
    """
    levels, counts = np.unique(values, return_counts=True)
    if len(levels) == 1:
        return float(levels[0])
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    sums = np.cumsum(counts * levels)
    between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(levels[int(np.argmax(between))])


def pixels_in_box(box: npt.ArrayLike, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centers lie in a box; at least one of each."""
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
    return _centers_between(y1, y2, shape[0]), _centers_between(x1, x2, shape[1])


def _centers_between(first: float, last: float, length: int) -> slice:
    start = min(max(int(np.ceil(first - 0.5)), 0), length - 1)
    stop = min(max(int(np.floor(last - 0.5)) + 1, start + 1), length)
    return slice(start, stop)
