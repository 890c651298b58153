"""Points that stand for what was drawn by hand: inside a lasso, along a scribble; always the same for one drawing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

LASSO_POINTS = 5
"""The most points that a lasso becomes."""

SCRIBBLE_POINTS = 8
"""The most points that a scribble becomes."""

_PIXELS_APART = 5.0  # Along a scribble, until there are the most points.
_PIXELS, _SIDES = 1 << 16, 1000  # Of a lasso: beyond them, only every n-th is looked at.

Points = npt.NDArray[np.float64]


def points_in_lasso(polygon: npt.ArrayLike, shape: tuple[int, int]) -> Points:
    """Pixel centers well inside a polygon, far from each other.

    The first is the one farthest from the outline. Each next one is farthest from those before, among the pixels that
    are at least half as far from the outline as the first.

    Args:
        polygon: (N, 2) vertices, (x, y) in pixels of the slice; even-odd where it crosses itself.
        shape: (H, W) of the slice.

    Returns:
        (M, 2) float64, 1 to `LASSO_POINTS`. A polygon without a pixel center inside gives the middle of its vertices.
    """
    vertices = np.asarray(polygon, np.float64)
    vertices = vertices[:: -(-len(vertices) // _SIDES)]
    size = np.array(shape[::-1])
    low = np.floor(vertices.min(axis=0)).clip(0, size).astype(int)
    high = np.ceil(vertices.max(axis=0)).clip(-1, size - 1).astype(int)
    step = math.ceil(math.sqrt(np.prod(np.maximum(high - low + 1, 1)) / _PIXELS))
    columns, rows = np.meshgrid(*(np.arange(*ends, step) for ends in zip(low, high + 1, strict=True)))
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
    inside = np.zeros(len(pixels), np.bool_)
    distance = np.full(len(pixels), np.inf)
    for start, end in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        inside ^= _right_of(pixels, start, end)
        np.minimum(distance, _squared_distance(pixels, start, end), out=distance)
    if not inside.any():
        return np.array([vertices.mean(axis=0)])
    pixels, distance = pixels[inside], distance[inside]
    chosen = [int(distance.argmax())]
    pixels = np.concatenate([pixels[chosen], pixels[distance >= distance[chosen[0]] / 4]])  # Squares: half as far.
    apart = ((pixels - pixels[0]) ** 2).sum(axis=1)
    chosen = [0]
    while len(chosen) < LASSO_POINTS and apart.max() > 0:
        chosen.append(int(apart.argmax()))
        np.minimum(apart, ((pixels - pixels[chosen[-1]]) ** 2).sum(axis=1), out=apart)
    return pixels[chosen]


def points_on_scribble(line: npt.ArrayLike) -> Points:
    """Points at equal distances along a line.

    Args:
        line: (N, 2) vertices, (x, y) in pixels of the slice.

    Returns:
        (M, 2) float64: one about every 5 pixels, 1 to `SCRIBBLE_POINTS`, each in the middle of an equal piece.
    """
    vertices = np.asarray(line, np.float64)
    lengths = np.hypot(*np.diff(vertices, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    if along[-1] == 0:
        return vertices[:1]
    count = int(np.clip(round(along[-1] / _PIXELS_APART), 1, SCRIBBLE_POINTS))
    places = (np.arange(count) + 0.5) * along[-1] / count
    return np.stack([np.interp(places, along, vertices[:, axis]) for axis in (0, 1)], axis=1)


def _right_of(pixels: Points, start: Points, end: Points) -> npt.NDArray[np.bool_]:
    """Whether a ray from each pixel to the right crosses the side."""
    spans: npt.NDArray[np.bool_] = (start[1] > pixels[:, 1]) != (end[1] > pixels[:, 1])
    if not spans.any():
        return spans
    crossing = start[0] + (pixels[:, 1] - start[1]) * (end[0] - start[0]) / (end[1] - start[1])
    crossed: npt.NDArray[np.bool_] = spans & (pixels[:, 0] < crossing)
    return crossed


def _squared_distance(pixels: Points, start: Points, end: Points) -> Points:
    side = end - start
    length = float(side @ side)
    share = np.zeros(len(pixels)) if length == 0 else ((pixels - start) @ side / length).clip(0, 1)
    nearest = start + share[:, np.newaxis] * side
    result: Points = ((pixels - nearest) ** 2).sum(axis=1)
    return result
