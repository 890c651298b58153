"""Checks that two scans are an image and its label map, and the size bins of structures."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import SliceView, whole_view
from samri.io import Scan

_HIGHEST_LABEL = int(np.iinfo(np.uint16).max)
# Two files of one grid may state its affine through a quaternion and through a matrix, and round differently. A shift
# by a voxel, or a flip, is far beyond this part of a voxel.
_SAME_PLACE = 0.05
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's codes: meter, millimeter, micron.


def one_slice(scan: Scan) -> SliceView:
    """The view of a scan that is a single slice.

    Raises:
        InputError: It is a volume.
    """
    try:
        return whole_view(scan.grid)
    except InputError as error:
        raise InputError(
            f"{scan.path} is a volume of shape {scan.grid}, not one slice: samri-prepare cuts volumes"
        ) from error


def gray(scan: Scan) -> npt.NDArray[Any]:
    """The scan's voxels in its grid; the three channels of a gray picture saved in color become one.

    Raises:
        InputError: The picture really has colors.
    """
    if scan.voxels.shape == scan.grid:
        return scan.voxels
    first = scan.voxels[..., 0]
    if any(not np.array_equal(first, scan.voxels[..., channel]) for channel in (1, 2)):
        raise InputError(f"{scan.path} has colors: save it as a gray picture")
    return first


def label_map(scan: Scan) -> npt.NDArray[np.uint16]:
    """The scan's voxels as labels, in its grid.

    Raises:
        InputError: Values that are no labels from 0 to 65535, or a JPEG, whose compression changes labels.
    """
    if scan.path.suffix.lower() in (".jpg", ".jpeg"):
        raise InputError(f"{scan.path}: JPEG doesn't keep labels as they are: save the mask as PNG or NIfTI")
    values = gray(scan)
    if values.dtype.kind == "f":
        fractions = values != np.rint(values)
        if fractions.any():
            raise InputError(
                f"{scan.path} holds {_shortest(values[fractions][0])}, which is not a label: labels are whole "
                "numbers; if these should be too, round them (numpy.rint) and save them as integers"
            )
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest > _HIGHEST_LABEL:
        wrong = lowest if lowest < 0 else highest
        raise InputError(
            f"{scan.path} holds {wrong:.0f}, which is not a label: labels go from 0 to {_HIGHEST_LABEL}, 0 is "
            "background"
        )
    return values.astype(np.uint16)


def check_same_grid(image: Scan, mask: Scan) -> None:
    """Refuse a mask of another shape, or that lies elsewhere, than its image.

    Raises:
        InputError: Names both files, and how they differ.
    """
    same_kind = (image.kind == "raster") == (mask.kind == "raster")
    shapes = (image.grid, mask.grid) if same_kind else (one_slice(image).shape, one_slice(mask).shape)
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{mask.path} has shape {shapes[1]}, its image {image.path} {shapes[0]}: resample the mask onto the image"
        )
    if image.nifti is None or mask.nifti is None:
        return
    apart = _furthest_corner(image, mask)
    if not apart <= _SAME_PLACE * min(image.spacing):
        raise InputError(
            f"{mask.path} is not aligned with its image {image.path}: their affines place a corner {apart:.3g} apart; "
            "resample the mask onto the image, or copy the image's header if only that is wrong"
        )


def slice_spacing(scan: Scan, view: SliceView) -> tuple[float, float]:
    """Between the rows and between the columns of a view of the scan, in mm; 1 where the scan doesn't say."""
    axes = view.describe()
    unit = _MILLIMETRES.get(int(scan.nifti.fields["xyzt_units"]) & 7, 1.0) if scan.nifti is not None else 1.0
    rows, columns = (scan.spacing[axes[f"{way}_from_axis"]] * unit for way in ("rows", "columns"))
    return rows, columns


def _furthest_corner(image: Scan, mask: Scan) -> float:
    """Largest distance between the places that both affines give to a corner of the grid, in the affines' units."""
    far = np.array([*image.grid, 1][:3]) - 1
    corners = np.array(list(np.ndindex(2, 2, 2))) * far
    differences = (image.affine - mask.affine)[:3]
    moved = corners @ differences[:, :3].T + differences[:, 3]
    return float(np.sqrt((moved**2).sum(axis=1)).max())


def _shortest(value: Any) -> str:
    return np.format_float_positional(value, trim="-")


Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)


def size_of(pixels: int, shape: tuple[int, ...]) -> Size:
    """The bin of a structure of that many pixels in an (H, W) image: under 0.5 %, to 3.5 %, above."""
    area = 1
    for length in shape:
        area *= length
    # In whole numbers, since the bounds are often met exactly.
    if 1000 * pixels < 5 * area:
        return "small"
    return "large" if 1000 * pixels > 35 * area else "medium"
