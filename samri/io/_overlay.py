"""The picture that a person looks at first: the slice, what was asked, and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.io.optional import require

Picture = npt.NDArray[np.uint8]
Color = tuple[int, int, int]

# Okabe and Ito's colors, which people with any common color vision tell apart, in RGB; without black, which an MRI's
# background has already.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)

_LEGIBLE = 768  # Pixels along the longest side, at least about.
_LARGEST = 4096  # However anisotropic the voxels.
_MOST_ANISOTROPIC = 1e6  # Beyond it one side is a single pixel anyway, and the sizes could become infinite.
_OPACITY = 0.35
_WINDOW = (0.5, 99.5)  # Percentiles of the slice that become black and white.


def draw_overlay(
    image: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    *,
    boxes: npt.ArrayLike = (),
    points: npt.ArrayLike = (),
    point_labels: Sequence[int] = (),
    spacing: tuple[float, float] = (1.0, 1.0),
) -> Picture:
    """Draw a slice with its objects filled and outlined, boxes in their object's color, and points.

    A small slice is enlarged, and anisotropic pixels are shown in their true proportions. A positive point is a white
    disc with a plus, a negative one a black disc with a minus: shapes, so that no color has to be told from another.

    Args:
        image: (H, W) or (H, W, 3), any real dtype.
        labels: (H, W) integers, 0 for no object; object k has `PALETTE[(k - 1) % 7]`.
        boxes: (B, 4) XYXY in pixels of the slice; box b belongs to object b + 1.
        points: (N, 2) x, y in the same pixels; whole numbers are pixel centers.
        point_labels: N of 1 (belongs to the object) or 0 (doesn't).
        spacing: Distance between rows and between columns, in any unit.

    Returns:
        (height, width, 3) RGB uint8.
    """
    cv2 = require("cv2")
    height, width = labels.shape
    shape = _display_shape((height, width), spacing)
    picture = _enlarge(cv2, _windowed(image), shape)
    enlarged = _enlarge_labels(labels, shape)
    scale = np.array([shape[1] / width, shape[0] / height])
    pen = _pen(shape)
    for label in np.unique(enlarged[enlarged > 0]).tolist():
        _fill_and_outline(cv2, picture, enlarged == label, color_of(label), pen)
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2) * scale
    for number, (first, last) in enumerate(corners, start=1):
        _draw_box(cv2, picture, first, last, color_of(number), pen)
        if len(corners) > 1:
            corner = int(first[0]) + 3 * pen, int(first[1]) + 12 * pen
            _write(cv2, picture, str(number), corner, color_of(number), pen)
    # A whole number is the center of a pixel, half a pixel from its edge.
    centers = (np.asarray(points, dtype=np.float64).reshape(-1, 2) + 0.5) * scale
    for center, positive in zip(centers, point_labels, strict=True):
        _draw_point(cv2, picture, center, bool(positive), pen)
    return picture


def side_by_side(pictures: Sequence[Picture], captions: Sequence[str]) -> Picture:
    """Pictures of one shape in a row, each under its caption."""
    cv2 = require("cv2")
    pen = _pen(pictures[0].shape)
    panels = []
    for picture, caption in zip(pictures, captions, strict=True):
        strip = np.zeros((20 * pen, picture.shape[1], 3), np.uint8)
        _write(cv2, strip, caption, (4 * pen, 14 * pen), _WHITE, pen)
        panels.append(np.pad(np.concatenate([strip, picture]), ((0, 0), (0, 4 * pen), (0, 0))))
    return np.concatenate(panels, axis=1)[:, : -4 * pen]


def montage(pictures: Sequence[Picture], captions: Sequence[str], columns: int) -> Picture:
    """Pictures of one shape in rows of `columns`, each under its caption."""
    rows = []
    for first in range(0, len(pictures), columns):
        row = side_by_side(pictures[first : first + columns], captions[first : first + columns])
        rows.append(row)
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _pen(shape: tuple[int, ...]) -> int:
    """Width of a line in pixels: what looks the same on a small and a large picture."""
    return max(1, round(max(shape[:2]) / 400))


def color_of(label: int) -> Color:
    """The color of object `label`, from 1, in pictures and tables."""
    return PALETTE[(label - 1) % len(PALETTE)]


def _display_shape(shape: tuple[int, int], spacing: tuple[float, float]) -> tuple[int, int]:
    """(height, width) of the picture: true proportions, large enough to see, no larger than needed."""
    finest = min(spacing)
    rows, columns = (min(distance / finest, _MOST_ANISOTROPIC) for distance in spacing)
    height, width = shape[0] * rows, shape[1] * columns
    longest = max(height, width)
    # A whole number keeps every voxel of an isotropic slice the same size.
    zoom: float = max(1, math.ceil(_LEGIBLE / longest))
    if longest > _LARGEST:
        zoom = max(_LARGEST, max(shape)) / longest
    return max(1, round(height * zoom)), max(1, round(width * zoom))


def _windowed(image: npt.NDArray[Any]) -> Picture:
    """RGB uint8 for the screen; 8-bit color stays as it is."""
    if image.ndim == 3 and image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    # A quarter looks the same, and the difference of two enormous values stays finite.
    values = image.astype(np.float64) / 4
    low, high = np.percentile(values, _WINDOW)
    if high <= low:
        low, high = values.min(), values.max()
    shown = np.clip((values - low) / (high - low if high > low else 1.0), 0.0, 1.0) * 255.0
    gray = np.rint(shown).astype(np.uint8)
    return gray if gray.ndim == 3 else np.repeat(gray[:, :, np.newaxis], 3, axis=2)


def _enlarge(cv2: Any, picture: Picture, shape: tuple[int, int]) -> Picture:
    shrinks = shape[0] < picture.shape[0] or shape[1] < picture.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(picture, (shape[1], shape[0]), interpolation=method)
    return np.array(resized, dtype=np.uint8, order="C")


def _enlarge_labels(labels: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """The label of the voxel in which each picture element's center lies: no label is invented."""
    rows = ((np.arange(shape[0]) + 0.5) * labels.shape[0] / shape[0]).astype(np.intp)
    columns = ((np.arange(shape[1]) + 0.5) * labels.shape[1] / shape[1]).astype(np.intp)
    return labels[np.ix_(rows, columns)]


def _fill_and_outline(cv2: Any, picture: Picture, mask: npt.NDArray[np.bool_], color: Color, pen: int) -> None:
    """Blend the object's color in, with an opaque rim inside its edge."""
    ink = np.array(color, dtype=np.float64)
    picture[mask] = np.rint(picture[mask] * (1 - _OPACITY) + ink * _OPACITY).astype(np.uint8)
    # A border of zeros gives an object that touches the image's edge a rim there too.
    padded = np.pad(mask, pen).astype(np.uint8)
    core = cv2.erode(padded, np.ones((2 * pen + 1, 2 * pen + 1), np.uint8))[pen:-pen, pen:-pen]
    picture[mask & (core == 0)] = color


def _draw_box(cv2: Any, picture: Picture, first: Any, last: Any, color: Color, pen: int) -> None:
    # The last row and column stand for the image's edge, or a box around all of it would be off the picture.
    limit = np.array(picture.shape[1::-1]) - 1
    corners = [tuple(int(value) for value in np.clip(np.rint(corner), 0, limit)) for corner in (first, last)]
    cv2.rectangle(picture, corners[0], corners[1], _BLACK, pen + 2)
    cv2.rectangle(picture, corners[0], corners[1], color, pen)


def _draw_point(cv2: Any, picture: Picture, center: Any, positive: bool, pen: int) -> None:
    x, y = (int(value) for value in center)
    radius, arm = 5 * pen, 3 * pen
    face, sign = (_WHITE, _BLACK) if positive else (_BLACK, _WHITE)
    cv2.circle(picture, (x, y), radius + pen, sign, -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, face, -1, cv2.LINE_AA)
    cv2.line(picture, (x - arm, y), (x + arm, y), sign, pen)
    if positive:
        cv2.line(picture, (x, y - arm), (x, y + arm), sign, pen)


def _write(cv2: Any, picture: Picture, text: str, origin: tuple[int, int], color: Color, pen: int) -> None:
    for ink, thickness in ((_BLACK, 3 * pen), (color, pen)):
        cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * pen, ink, thickness, cv2.LINE_AA)
