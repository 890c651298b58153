"""The slice and boxes that a measurement uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import axis_view, whole_view

_SIDE = 256
_GRID = 4


@dataclass(frozen=True, eq=False)
class Scene:
    """A slice and boxes.

    Attributes:
        name: For reports; not a path.
        image: (H, W) or (H, W, 3).
        boxes: (B, 4) XYXY in pixels of the slice.
    """

    name: str
    image: npt.NDArray[np.generic]
    boxes: npt.NDArray[np.float64]


def phantom_scene() -> Scene:
    """A synthetic slice of 16 bright ellipses on a dark, uneven, noisy background, and a box around each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    image = 30 + 20 * np.sin(rows / 40) * np.cos(columns / 55) + rng.normal(0, 4, (_SIDE, _SIDE))
    cell = _SIDE / _GRID
    boxes = []
    for row in range(_GRID):
        for column in range(_GRID):
            y, x = (row + 0.5) * cell + rng.uniform(-6, 6), (column + 0.5) * cell + rng.uniform(-6, 6)
            height, width = rng.uniform(10, 22, 2)
            image += 90 * (((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1)
            boxes.append([x - width, y - height, x + width, y + height])
    return Scene("phantom", image.astype(np.float32), np.clip(np.array(boxes), 0, _SIDE))


def scan_scene(path: str | Path, index: int | None = None, boxes: npt.ArrayLike | None = None) -> Scene:
    """A slice of a scan.

    Args:
        path: A file that `samri.read_scan` reads.
        index: Slice of a volume along its last axis; by default the middle one.
        boxes: (B, 4) XYXY; by default 16 boxes that tile the slice.

    Raises:
        InputError: The scan can't be read, or has no such slice.
        MissingDependencyError: nibabel or OpenCV isn't installed.
    """
    from samri.io import read_scan

    scan = read_scan(Path(path))
    volume = scan.kind != "raster" and len(scan.grid) == 3
    if not volume and index is not None:
        raise InputError(f"{path} is one slice: leave out --slice")
    view = axis_view(scan.grid, 2, scan.grid[2] // 2 if index is None else index) if volume else whole_view(scan.grid)
    image = view.extract(scan.voxels)
    given = _tiles(image.shape[0], image.shape[1]) if boxes is None else np.atleast_2d(np.asarray(boxes, np.float64))
    return Scene(scan.path.name, image, given)


def _tiles(height: int, width: int) -> npt.NDArray[np.float64]:
    """4 x 4 overlapping boxes over the middle of the slice, each 1.5 times as wide and high as its cell."""
    centers = [
        ((column + 1) * width / (_GRID + 1), (row + 1) * height / (_GRID + 1))
        for row in range(_GRID)
        for column in range(_GRID)
    ]
    half = 0.75 * np.array([width, height]) / (_GRID + 1)
    return np.array([[*(np.array(center) - half), *(np.array(center) + half)] for center in centers])
