"""Where a slice lies in its volume, and how large an image becomes in the model.

One rule everywhere: a point is (x, y) in pixels of the slice as shown, x to the right along columns, y down along rows,
pixel (0, 0) at the top left. A `SliceView` says how "as shown" follows from the voxel array, and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.errors import InputError

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")

# For each plane, in RAS axes (0 = right, 1 = anterior, 2 = superior): the axis cut across, then the axis that runs down
# the rows and the one that runs along the columns, each with the direction in which the index grows on screen.
# Axial and coronal: patient's right on the left, anterior or superior up. Sagittal: anterior on the left, superior up.
_DISPLAY: dict[Plane, tuple[int, tuple[int, int], tuple[int, int]]] = {
    "axial": (2, (1, -1), (0, -1)),
    "coronal": (1, (2, -1), (0, -1)),
    "sagittal": (0, (2, -1), (1, -1)),
}


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after scaling the longest side to `size`, as Segment Anything rounds them.

    Source: `ResizeLongestSide.get_preprocess_shape` of segment-anything: int(side * scale + 0.5). A side never
    becomes 0, however thin the image.
    """
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@dataclass(frozen=True)
class SliceView:
    """A 2-D view of a grid: which axis is cut, where, and how the rest is turned for the screen.

    Attributes:
        grid: Shape of the voxel array, 2-D or 3-D, without color channels.
        axis: Axis cut across, or None when the grid is 2-D.
        index: Index along `axis`.
        transpose: The remaining axes, in ascending order, are (columns, rows) rather than (rows, columns).
        flip_rows: Rows run against their voxel axis.
        flip_columns: Columns run against their voxel axis.
        plane: Name of the anatomical plane, when one was asked for.
        position: Index in RAS order, when a plane was asked for.

    Example:
        >>> import numpy as np
        >>> from samri.geometry import axis_view
        >>> volume = np.zeros((50, 60, 20))
        >>> view = axis_view(volume.shape, axis=2, index=7)
        >>> view.extract(volume).shape, (view.row_axis, view.column_axis)
        ((50, 60), (0, 1))
        >>> view.insert(np.ones(view.shape, bool)).sum(axis=(0, 1))[6:9].tolist()
        [0, 3000, 0]
    """

    grid: tuple[int, ...]
    axis: int | None = None
    index: int = 0
    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    plane: Plane | None = None
    position: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the slice as shown."""
        return self.grid[self.row_axis], self.grid[self.column_axis]

    @property
    def row_axis(self) -> int:
        """Axis of the grid that runs down the slice as shown."""
        return self._display_axes[0]

    @property
    def column_axis(self) -> int:
        """Axis of the grid that runs along the slice as shown."""
        return self._display_axes[1]

    def spacing(self, grid_spacing: Sequence[float]) -> tuple[float, float]:
        """Distance between rows and between columns as shown, from the distances along the axes of the grid."""
        return grid_spacing[self.row_axis], grid_spacing[self.column_axis]

    @property
    def _display_axes(self) -> tuple[int, int]:
        rows, columns = [axis for axis in range(len(self.grid)) if axis != self.axis]
        return (columns, rows) if self.transpose else (rows, columns)

    @property
    def _selection(self) -> tuple[slice | int, ...]:
        return tuple(self.index if axis == self.axis else slice(None) for axis in range(len(self.grid)))

    def _show(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.transpose:
            array = array.swapaxes(0, 1)
        return array[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def extract(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The slice as shown: (H, W), or (H, W, channels) when `volume` has a last axis beyond the grid.

        Raises:
            InputError: The volume's shape isn't the view's grid.
        """
        if volume.shape[: len(self.grid)] != self.grid or volume.ndim > len(self.grid) + 1:
            raise InputError(f"this view is of a grid {self.grid}, not of an array {volume.shape}")
        return self._show(volume[self._selection])

    def insert(self, mask: npt.NDArray[Any], dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """An array in the grid's shape with `mask` (H, W) at this slice and zeros elsewhere: the inverse of `extract`.

        Raises:
            InputError: The mask's shape isn't the view's.
        """
        if mask.shape != self.shape:
            raise InputError(f"a mask of shape {mask.shape} doesn't fit a slice of shape {self.shape}")
        volume = np.zeros(self.grid, dtype, order="F")  # As NIfTI stores it.
        self._show(volume[self._selection])[...] = mask
        return volume

    def describe(self) -> dict[str, Any]:
        """The view in plain JSON values, for provenance."""
        return {
            "grid": list(self.grid),
            "axis": self.axis,
            "index": self.index,
            "plane": self.plane,
            "plane_index": self.position,
            "rows_from_axis": self.row_axis,
            "columns_from_axis": self.column_axis,
            "flip_rows": self.flip_rows,
            "flip_columns": self.flip_columns,
        }


def whole_view(shape: Sequence[int]) -> SliceView:
    """The view of a grid that is one slice: (H, W), (1, H, W), (H, 1, W) or (H, W, 1), shown as its array.

    Raises:
        InputError: The grid holds more than one slice.
    """
    grid = tuple(shape)
    if len(grid) == 2:
        return SliceView(grid)
    axis = single_axis(grid)
    if axis is not None:
        return SliceView(grid, axis=axis)
    raise InputError(f"a volume of shape {grid} holds many slices: name one with --slice and --axis or --plane")


def single_axis(shape: Sequence[int]) -> int | None:
    """The axis of a 3-D grid along which there is one slice only, or None; of several the first, or else the last."""
    return next((axis for axis in (0, 2, 1) if len(shape) == 3 and shape[axis] == 1), None)


def axis_view(shape: Sequence[int], axis: int, index: int) -> SliceView:
    """Slice `index` across an array axis; the remaining axes in ascending order are (rows, columns).

    Raises:
        InputError: No such axis or slice.
    """
    grid = tuple(shape)
    if not 0 <= axis < len(grid) or len(grid) != 3:
        raise InputError(f"axis {axis} of an array of shape {grid}: choose 0, 1 or 2 of a volume")
    _check_index(index, grid[axis], f"axis {axis}")
    return SliceView(grid, axis=axis, index=index)


def plane_view(shape: Sequence[int], affine: npt.ArrayLike, plane: Plane, index: int) -> SliceView:
    """The slice of the array axis nearest to an anatomical plane, turned as radiologists show it; no resampling.

    Args:
        shape: (I, J, K) of the voxel array.
        affine: (4, 4) voxel indices to millimetres in RAS+.
        plane: `axial`, `coronal` or `sagittal`.
        index: Counted in RAS order: from left to right, from posterior to anterior, from inferior to superior.

    Raises:
        InputError: No such slice, or the affine doesn't span three directions.

    Example:
        >>> import numpy as np
        >>> from samri.geometry import plane_view
        >>> view = plane_view((50, 60, 20), np.diag([1, 1, 3, 1]), "coronal", 12)
        >>> view.axis, view.index, view.shape, view.spacing((1, 1, 3))
        (1, 12, (20, 50), (3, 1))
    """
    grid = tuple(shape)
    if len(grid) != 3:
        raise InputError(f"an array of shape {grid} has no {plane} plane: that needs a volume")
    voxel_axes, directions = nearest_ras_axes(affine)
    across, (down, down_sign), (along, along_sign) = _DISPLAY[plane]
    axis = voxel_axes[across]
    _check_index(index, grid[axis], f"the {plane} direction")
    rows, columns = voxel_axes[down], voxel_axes[along]
    return SliceView(
        grid,
        axis=axis,
        index=index if directions[across] > 0 else grid[axis] - 1 - index,
        transpose=rows > columns,
        flip_rows=directions[down] != down_sign,
        flip_columns=directions[along] != along_sign,
        plane=plane,
        position=index,
    )


def nearest_ras_axes(affine: npt.ArrayLike) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The voxel axis nearest to each of right, anterior and superior, and the sign with which it runs.

    The voxel directions, scaled to unit length, are replaced by the nearest orthogonal frame (polar decomposition, so
    that shears don't tip the balance); then the largest cosines are taken greedily, each axis once.

    Raises:
        InputError: The affine is singular or not finite.
    """
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    largest = np.abs(linear).max(axis=0)
    if not np.all(np.isfinite(linear)) or not np.all(largest > 0):
        raise InputError("the affine has no three directions, so anatomical planes are unknown: use --axis instead")
    linear = linear / largest  # First, or the squares of very large or small entries would be infinite or 0.
    left, singular, right = np.linalg.svd(linear / np.sqrt((linear**2).sum(axis=0)))
    if singular[-1] <= 1e-6 * singular[0]:
        raise InputError("the affine is singular, so anatomical planes are unknown: use --axis instead")
    cosines = left @ right
    axes, signs = [0, 0, 0], [1, 1, 1]
    remaining = np.abs(cosines)
    for _ in range(3):
        world, voxel = np.unravel_index(int(np.argmax(remaining)), remaining.shape)
        axes[world], signs[world] = int(voxel), 1 if cosines[world, voxel] > 0 else -1
        remaining[world, :] = remaining[:, voxel] = -1.0
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


def _check_index(index: int, length: int, where: str) -> None:
    if not 0 <= index < length:
        raise InputError(f"slice {index} is out of range: {where} has slices 0 to {length - 1}")
