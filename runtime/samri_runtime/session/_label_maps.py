"""Label maps that sessions start from: found by hash, and in the grid of the scan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.hashing import file_sha256
from samri.io import Scan, read_scan
from samri_runtime.session._edits import Start

_HIGHEST = 65_535


def read_label_map(path: Path, scan: Scan) -> tuple[npt.NDArray[Any], str]:
    """The labels in a file, uint16 in the grid of the scan, and the SHA-256 of the file.

    Raises:
        InputError: It can't be read, lies elsewhere than the scan, or holds no labels.
    """
    read = read_scan(path)
    voxels = read.voxels
    if scan.nifti is None and voxels.shape == (1, *scan.grid):  # As `samri-run` writes the masks of pictures.
        voxels = voxels[0]
    elif scan.nifti is not None and not np.allclose(read.affine, scan.affine, atol=1e-3):
        raise InputError(f"{path} lies elsewhere in space than {scan.path}: resample it into the grid of the scan")
    if voxels.shape != scan.grid:
        raise InputError(f"{path} has the shape {voxels.shape}, and {scan.path} {scan.grid}: give a map in its grid")
    lowest, highest = voxels.min(initial=0), voxels.max(initial=0)
    if lowest < 0 or highest > _HIGHEST or (voxels.dtype.kind == "f" and (voxels % 1).any()):
        raise InputError(f"{path} is no label map: labels are whole numbers from 0 to {_HIGHEST}")
    return voxels.astype(np.uint16), read.sha256


def find_label_map(edit: Start, folders: Iterable[Path], scan: Scan) -> npt.NDArray[Any]:
    """The label map that a session names, from one of these folders.

    Raises:
        InputError: It is in none of them, or can't be used.
    """
    for folder in folders:
        path = folder / edit.file
        if path.is_file() and file_sha256(path) == edit.sha256:
            return read_label_map(path, scan)[0]
    raise InputError(
        f"the session starts from {edit.file} with SHA-256 {edit.sha256[:12]}..., which isn't there: put it beside the "
        "session or the scan"
    )
