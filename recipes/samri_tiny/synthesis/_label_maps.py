"""Label maps to draw from: volumes in which each voxel holds the number of a structure."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io import read_scan

HELD_OUT_EVERY = 5
_LARGEST_CODE = 1_000_000


@dataclass(frozen=True)
class LabelMap:
    """One subject's structures.

    Attributes:
        name: Name of its file, without endings.
        labels: (X, Y, Z) uint8, indices into `codes`, cropped to what isn't background.
        codes: (L,) int64, the file's own numbers, ascending; 0 is background and comes first.
        spacing: (3,) voxel size in mm.
    """

    name: str
    labels: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.int64]
    spacing: npt.NDArray[np.float64]


def read_label_maps(files: Sequence[Path]) -> list[LabelMap]:
    """Read label maps (NIfTI), 8 bits a voxel.

    Raises:
        InputError: No files, not a volume of whole numbers, or more than 255 labels.
    """
    if not files:
        raise InputError("no label maps to draw slices from: name a folder that holds .nii or .nii.gz files")
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_read, files))


def hold_out(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files to train on and files to keep for testing: of the sorted names, every fifth is kept."""
    ordered = sorted(files, key=lambda file: file.name)
    kept = ordered[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [file for file in ordered if file not in kept], kept


def _read(file: Path) -> LabelMap:
    scan = read_scan(file)
    values = scan.voxels
    if values.ndim != 3:
        raise InputError(f"{file}: a label map has 3 axes, this has {values.ndim}")
    if not 0 <= values.min() <= values.max() <= _LARGEST_CODE or not np.array_equal(values, np.rint(values)):
        raise InputError(f"{file}: a label map holds whole numbers from 0 to {_LARGEST_CODE}; this looks like an image")
    numbers = values.astype(np.int64)
    used = np.bincount(numbers.ravel()) > 0
    used[0] = True  # Background, also where a crop has none.
    codes = np.flatnonzero(used)
    if not 2 <= len(codes) <= 256:
        raise InputError(f"{file}: a label map has 1 to 255 structures, this has {len(codes) - 1}")
    labels = (np.cumsum(used) - 1).astype(np.uint8)[numbers]
    box = tuple(slice(*_extent(np.asarray(labels.any(axis=axes)))) for axes in ((1, 2), (0, 2), (0, 1)))
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    return LabelMap(file.name.split(".")[0], np.ascontiguousarray(labels[box]), codes, spacing)


def _extent(used: npt.NDArray[np.bool_]) -> tuple[int, int]:
    where = np.flatnonzero(used)
    return int(where[0]), int(where[-1]) + 1
