"""One slice as a NIfTI file that lies where it lay in its volume."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.geometry import SliceView
from samri.io import Scan
from samri.io.optional import require

_ALIGNED = 2  # NIfTI's code for coordinates of some other file, here the volume.
_SPATIAL_UNIT = 0b111
_GZIP_LEVEL = 1  # On slices of heads, level 9 takes five times as long for 1 to 3 % fewer bytes.


def slice_affine(view: SliceView, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(4, 4) affine of the array (H, W, 1) that shows `view`: (row, column, 0) lies where its voxel does.

    Args:
        view: Of a volume, or of a grid that is one slice.
        affine: (4, 4) of the volume.
    """
    seen = view.describe()
    rows, columns = seen["rows_from_axis"], seen["columns_from_axis"]
    across = 3 - rows - columns
    height, width = view.shape
    voxels = np.zeros((4, 4))  # (row, column, 0, 1) to (i, j, k, 1).
    voxels[rows, 0] = -1 if view.flip_rows else 1
    voxels[rows, 3] = height - 1 if view.flip_rows else 0
    voxels[columns, 1] = -1 if view.flip_columns else 1
    voxels[columns, 3] = width - 1 if view.flip_columns else 0
    voxels[across, 2] = 1
    voxels[across, 3] = view.index
    voxels[3, 3] = 1
    result: npt.NDArray[np.float64] = affine @ voxels
    return result


class SliceWriter:
    """Writes slices of one scan: images and label maps get the same geometry, and nothing else of its header."""

    def __init__(self, scan: Scan) -> None:
        self._nibabel = require("nibabel")
        self._affine = scan.affine
        self._code, self._unit = _ALIGNED, 0
        if scan.nifti is not None:
            fields = scan.nifti.fields
            self._code = int(fields["sform_code"]) or int(fields["qform_code"]) or _ALIGNED
            self._unit = int(fields["xyzt_units"]) & _SPATIAL_UNIT

    def write(self, path: Path, pixels: npt.NDArray[Any], view: SliceView) -> None:
        """Write `pixels` (H, W), seen through `view`, to a file that isn't there yet; `.nii.gz`.

        Raises:
            OSError: It can't be written.
        """
        affine = slice_affine(view, self._affine)
        header = self._nibabel.Nifti1Header()
        header.set_data_dtype(pixels.dtype)
        header.set_data_shape((*pixels.shape, 1))
        header.set_zooms(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
        header.set_sform(affine, code=self._code)
        header["xyzt_units"] = self._unit
        # No affine: nibabel would write it over the sform and set the code anew.
        image = self._nibabel.Nifti1Image(pixels[..., np.newaxis], None, header)
        # No name and no time inside, so that equal slices are equal files.
        with path.open("xb") as file, gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as stream:
            image.to_stream(stream)


def smallest_exact(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Float64 that float32 holds exactly, as it does scaled integers of a scanner, in float32; others as they are."""
    if voxels.dtype.kind == "f" and voxels.dtype.itemsize > 4:
        short = voxels.astype(np.float32)
        return short if np.array_equal(short, voxels) else voxels.astype(np.float64)
    return voxels
