"""A place in three frames: pixels of a slice as shown, voxel indices, millimeters. docs/geometry.md has the formula.

- pixels (x, y): x to the right, y down; whole numbers are pixel centers. A box's sides are pixel edges, where pixel p
  reaches from p to p + 1; the center of pixel p is therefore p + 1/2 in the frame of boxes.
- voxel indices (i, j, k) of the array; whole numbers are voxel centers.
- millimeters in the scan's world, RAS+: the affine times the voxel indices. ITK and DICOM count LPS+.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, PromptError
from samri.geometry import SliceView

Array = npt.NDArray[np.float64]


def voxel_to_mm(affine: npt.ArrayLike, voxels: npt.ArrayLike) -> Array:
    """Millimeters (..., 3), RAS+, of voxel indices (..., 3)."""
    matrix, places = np.asarray(affine, np.float64), np.asarray(voxels, np.float64)
    result: Array = places @ matrix[:3, :3].T + matrix[:3, 3]
    return result


def mm_to_voxel(affine: npt.ArrayLike, mm: npt.ArrayLike) -> Array:
    """Voxel indices (..., 3) of millimeters (..., 3), RAS+: the inverse of `voxel_to_mm`.

    Raises:
        InputError: The affine has no inverse.
    """
    matrix, places = np.asarray(affine, np.float64), np.asarray(mm, np.float64)
    offset = (places - matrix[:3, 3]).reshape(-1, 3)
    try:
        voxels: Array = np.linalg.solve(matrix[:3, :3], offset.T).T.astype(np.float64)
    except np.linalg.LinAlgError as error:
        raise InputError("the affine is singular, so millimeters have no voxels: give voxel indices") from error
    return voxels.reshape(places.shape)


def lps_to_ras(mm: npt.ArrayLike) -> Array:
    """ITK's and DICOM's millimeters (..., 3) as RAS+, or the other way: left and posterior change their signs."""
    turned: Array = np.asarray(mm, np.float64) * np.array([-1.0, -1.0, 1.0])
    return turned


def voxel_to_pixel(view: SliceView, voxels: npt.ArrayLike) -> Array:
    """Pixels (..., 2), (x, y), of voxel indices (..., 3) on or beside the slice: straight across onto it."""
    places = np.asarray(voxels, np.float64)
    x, y = places[..., view.column_axis], places[..., view.row_axis]
    height, width = view.shape
    return np.stack([width - 1 - x if view.flip_columns else x, height - 1 - y if view.flip_rows else y], axis=-1)


def pixel_to_voxel(view: SliceView, pixels: npt.ArrayLike) -> Array:
    """Voxel indices (..., 3) of pixels (..., 2), (x, y), of the slice."""
    places = np.asarray(pixels, np.float64)
    x, y = places[..., 0], places[..., 1]
    height, width = view.shape
    voxels = np.zeros((*places.shape[:-1], 3))
    if view.axis is not None:
        voxels[..., view.axis] = view.index
    voxels[..., view.column_axis] = width - 1 - x if view.flip_columns else x
    voxels[..., view.row_axis] = height - 1 - y if view.flip_rows else y
    return voxels


def box_of_corners(view: SliceView, corners: npt.ArrayLike) -> Array:
    """The box (4,), XYXY, between two opposite corners (2, 3) in voxel indices, which are points in space."""
    first, second = voxel_to_pixel(view, corners) + 0.5
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)])


def box_of_voxels(view: SliceView, corners: npt.ArrayLike) -> Array:
    """The box (4,), XYXY, around all voxels from one corner voxel to the opposite one (2, 3), both of them included."""
    box: Array = box_of_corners(view, corners) + np.array([-0.5, -0.5, 0.5, 0.5])
    return box


def nearest_index(grid: Sequence[int], axis: int | None, voxels: npt.ArrayLike, named: str) -> int:
    """Index of the one slice across `axis` that holds all voxel indices (N, 3).

    Args:
        grid: Shape of the voxel array, 2-D or 3-D.
        axis: The axis; None for a 2-D grid.
        voxels: (N, 3), N at least 1.
        named: What is to be placed, as a message begins: `box (1, 2, 3) to (4, 5, 6) mm`.

    Raises:
        PromptError: One lies outside the grid, or they lie on different slices.
    """
    places = np.asarray(voxels, np.float64)
    shape = np.array([*grid, 1][:3])
    # Half a voxel around the center of each belongs to it.
    if not ((places >= -0.5) & (places <= shape - 0.5)).all():
        sides = " x ".join(map(str, shape))
        raise PromptError(f"{named} lies outside the scan, whose grid is {sides} voxels: check the coordinates")
    if axis is None:
        return 0
    found = np.clip(np.floor(places[:, axis] + 0.5).astype(int), 0, shape[axis] - 1)
    if len(set(found.tolist())) > 1:
        raise PromptError(
            f"{named} reaches from slice {found.min()} to {found.max()} of axis {axis}: put both corners on one slice, "
            "or choose another --axis or --plane"
        )
    return int(found[0])
