"""A scan as the rest of SAMRI sees it, whatever file it came from, and the way back for its mask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, OutputError
from samri.hashing import hashed_as_read
from samri.io._formats import MGH, NIFTI, NIFTI_PAIR, is_a_folder, known_suffix
from samri.io._mgh import read_mgh
from samri.io._nifti import read_nifti, read_nifti_pair, write_nifti
from samri.io._nifti_header import NiftiGrid
from samri.io._raster import read_raster
from samri.io._volume_stream import MissingFrameError

__all__ = ["MissingFrameError", "Scan", "ScanKind", "read_scan", "scan_name", "write_mask"]

ScanKind = Literal["nifti", "mgh", "raster"]


@dataclass(frozen=True, eq=False)
class Scan:
    """One image, or one frame of a 4-D one.

    Attributes:
        path: The file it was read from.
        kind: `nifti` and `mgh` have geometry, `raster` (PNG, JPEG, TIFF) has none.
        voxels: NIfTI, MGH: (I, J) or (I, J, K) in the file's own axes, in its own dtype, or float64 where the header
            scales it. Raster: (H, W) or (H, W, 3) in RGB order. NaN and infinite values are replaced.
        affine: (4, 4) float64, voxel indices to millimetres in RAS+, as nibabel reads it; identity for a raster.
        nifti: What places the grid in space: a NIfTI's own fields, byte for byte, or an MGH's geometry put into such
            fields; None for a raster.
        frame: Which frame of a 4-D file this is.
        frames: How many there are.
        notes: What the reader had to put right, one line each.
        sha256: SHA-256 of the bytes that were read, in hexadecimal digits.
    """

    path: Path
    kind: ScanKind
    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    nifti: NiftiGrid | None = None
    frame: int = 0
    frames: int = 1
    notes: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape without color channels: what a mask of this scan has."""
        return self.voxels.shape[:2] if self.kind == "raster" else self.voxels.shape

    @property
    def oriented(self) -> bool:
        """The file says where its axes point: its sform or qform code is above 0."""
        return self.nifti is not None and bool(
            self.nifti.fields["sform_code"] > 0 or self.nifti.fields["qform_code"] > 0
        )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between voxel centers along each axis of the grid, in the affine's units; 1 where unknown."""
        with np.errstate(over="ignore"):
            # Unlike the root of squares, it overflows only where the length itself can't be told.
            lengths = np.hypot.reduce(self.affine[:3, :3], axis=0)[: len(self.grid)]
        return tuple(float(length) if np.isfinite(length) and length > 0 else 1.0 for length in lengths)


def read_scan(path: str | os.PathLike[str], frame: int | None = None) -> Scan:
    """Read a volume (NIfTI, a NIfTI pair, MGH; 2-D, 3-D, or one frame of 4-D), or a PNG, JPEG or TIFF.

    Only the asked-for frame of a 4-D file is kept in memory. A raster's alpha channel is dropped, and its EXIF
    orientation applied: pixels are counted as viewers show the picture. NaN and infinite values are read as
    background: as 0, or as the lowest finite value where some are below 0.

    Args:
        path: The file: .nii, .nii.gz, .hdr or .img (plain or .gz), .mgz, .mgh, .png, .jpg, .tif.
        frame: Index of the frame of a 4-D file. It may be left out where there is one frame only.

    Raises:
        InputError: The file is missing, damaged, of another kind, or holds something that can't be segmented.
        MissingFrameError: A 4-D file with several frames, and no `frame`.
        MissingDependencyError: nibabel or OpenCV isn't installed.

    Example:
        >>> import samri
        >>> scan = samri.read_scan("scan.nii.gz")
        >>> scan.kind, scan.grid, scan.spacing, scan.voxels.dtype
        ('nifti', (50, 40, 20), (1.0, 1.0, 2.0), dtype('int16'))
    """
    path = Path(path)
    suffix = known_suffix(path)
    try:
        if path.is_dir():
            raise is_a_folder(path)
        with hashed_as_read(path) as sha256:
            if suffix in (*NIFTI, *NIFTI_PAIR, *MGH):
                read = read_nifti if suffix in NIFTI else read_mgh if suffix in MGH else read_nifti_pair
                image = read(path, frame)
                kind: ScanKind = "mgh" if suffix in MGH else "nifti"
                place = (image.grid, image.frame, image.frames, image.notes)
                scan = Scan(path, kind, image.voxels, image.affine, *place, sha256())
            else:
                if frame not in (None, 0):
                    raise InputError(f"{path} has no frames: leave out --frame {frame}")
                scan = Scan(path, "raster", read_raster(path), np.eye(4), sha256=sha256())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {os.strerror(error.errno) if error.errno else error}") from error
    except MemoryError as error:
        raise InputError(f"{path} does not fit in memory: crop it to the part you need") from error
    if not np.isfinite(scan.affine).all():
        raise InputError(
            f"{path} has an affine of NaN or infinite numbers: correct its sform or qform, and save it again"
        )
    voxels, replaced = _finite(scan)
    # Names rather than paths: notes become part of the provenance, and folders often name the patient.
    return replace(scan, voxels=voxels, notes=tuple(f"{path.name}: {note}" for note in (*scan.notes, *replaced)))


def write_mask(
    path: str | os.PathLike[str],
    mask: npt.NDArray[Any],
    scan: Scan,
    names: Mapping[int, str] | None = None,
    colors: Mapping[int, str] | None = None,
) -> None:
    """Write a mask or label map as NIfTI in the geometry of `scan`, whatever the format of that.

    It gets the scan's grid, affine, sform and qform with their codes, voxel sizes and units, all bit for bit, and the
    scan's NIfTI version and byte order. A scan without geometry gives (1, H, W) and an identity affine. Nothing else
    of the scan's header (descriptions, extensions) is passed on: it may name the patient.

    Args:
        path: `.nii.gz` or `.nii`; it appears whole or not at all.
        mask: Bool or integer, in the scan's grid, 0 outside all objects. Stored as uint8, or uint16 above 255.
        scan: What it is a mask of.
        names: Label to name, for the header's extension (`samri.io._label_names`); none without.
        colors: Label to `#rrggbb` for it; those of the overlay for all others.

    Raises:
        ValueError: The mask isn't in the scan's grid, or isn't labels of 0 to 65535.
        OutputError: The file can't be written, or is the scan itself.
    """
    path = Path(path)
    if path.exists() and scan.path.exists() and path.samefile(scan.path):
        raise OutputError(f"{path} is the scan itself: write its mask to another file")
    if mask.shape != scan.grid:
        raise ValueError(f"a mask of shape {mask.shape} doesn't fit {scan.path}, whose grid is {scan.grid}")
    if mask.dtype.kind not in "bui":
        raise ValueError(f"a mask holds booleans or integers, not {mask.dtype}")
    highest, lowest = int(mask.max(initial=0)), int(mask.min(initial=0))
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise ValueError(f"labels go from 0 to {np.iinfo(np.uint16).max}, these from {lowest} to {highest}")
    labels = mask.astype(np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16)
    write_nifti(path, labels if scan.nifti is not None else labels[np.newaxis], scan.nifti, names, colors)


def scan_name(path: str | os.PathLike[str]) -> str:
    """File name without folder and suffix: `case001` for `data/case001.nii.gz`.

    Raises:
        InputError: No suffix of an image that can be read.
    """
    path = Path(path)
    return path.name[: -len(known_suffix(path))]


def _finite(scan: Scan) -> tuple[npt.NDArray[Any], list[str]]:
    """The voxels with NaN and infinite ones as background, and a note on how many there were.

    Maps that were computed inside a brain mask hold such values outside of it. 0 is what most tools read there, what
    a label map needs, and what `medsam` leaves out of its percentiles; among negative values it would be gray.
    """
    if scan.voxels.dtype.kind != "f":
        return scan.voxels, []
    finite = np.isfinite(scan.voxels)
    count = scan.voxels.size - int(np.count_nonzero(finite))
    if not count:
        return scan.voxels, []
    if count == scan.voxels.size:
        raise InputError(f"{scan.path} holds nothing but NaN or infinite values: export it again")
    background = min(0.0, float(scan.voxels.min(where=finite, initial=np.inf)))
    voxels = np.where(finite, scan.voxels, scan.voxels.dtype.type(background))
    return voxels, [f"{count} of {scan.voxels.size} values are NaN or infinite: read as {background:g}, as background"]
