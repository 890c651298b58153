"""FreeSurfer's MGH and MGZ: a header of fixed size, then voxels, all big-endian.

Source: FreeSurfer's description of the format (FsFastFormat, MghFormat) and nibabel's `mghformat`.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io._nifti import VolumeImage
from samri.io._nifti_header import grid_of
from samri.io._volume_stream import check_shape, choose_frame, volume_stream

_HEADER_BYTES = 284
_DTYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
# What a file without geometry is taken for: voxels of 1 mm, coronal slices.
_UNPLACED = (*(1.0, 1.0, 1.0), *(-1.0, 0.0, 0.0), *(0.0, 0.0, -1.0), *(0.0, 1.0, 0.0), *(0.0, 0.0, 0.0))


def read_mgh(path: Path, frame: int | None) -> VolumeImage:
    """Read one frame of an MGH file, plain or gzipped (MGZ).

    Raises:
        InputError: It isn't whole, isn't MGH, or holds what can't be segmented.
        MissingFrameError: Several frames and no `frame`.
        OSError: The file can't be read.
    """
    with volume_stream(path) as source:
        start = source.bytes.read(_HEADER_BYTES)
        if not start:
            raise InputError(f"{path} is empty: copy it again")
        if len(start) < _HEADER_BYTES or start[:4] != b"\0\0\0\1":
            raise InputError(
                f"{path} is not a FreeSurfer volume despite its name: check the name, or convert it "
                f"(mri_convert {path.name} scan.nii.gz)"
            )
        *sides, kind, _, placed = struct.unpack_from(">6ih", start, 4)
        if kind not in _DTYPES:
            raise InputError(
                f"{path} holds voxels of MGH type {kind}, which isn't a number: convert it "
                f"(mri_convert {path.name} scan.nii.gz)"
            )
        *volume, frames = check_shape(path, tuple(sides))
        dtype = np.dtype(_DTYPES[kind])
        data_bytes = source.check((*volume, frames), dtype, _HEADER_BYTES, frames)
        index = choose_frame(path, frames, frame)
        frame_bytes = data_bytes // frames
        source.bytes.seek(_HEADER_BYTES + index * frame_bytes)
        content = bytearray(source.bytes.read(frame_bytes))
        source.finish(_HEADER_BYTES, data_bytes)
        voxels = np.frombuffer(content, dtype).reshape(volume, order="F")
    numbers = struct.unpack_from(">15f", start, 30)
    if placed <= 0:
        numbers = _UNPLACED
    affine = _affine(numbers, tuple(volume))
    if not np.isfinite(affine).all() or not affine[:3, :3].any(axis=0).all():
        raise InputError(f"{path} has invalid voxel sizes or directions: correct them, and save it again")
    return VolumeImage(
        voxels.astype(dtype.newbyteorder("="), copy=False),
        affine,
        grid_of(affine, tuple(volume)),
        index,
        frames,
        () if placed > 0 else ("it doesn't say where its axes point: read as coronal slices, as FreeSurfer does",),
    )


def _affine(numbers: tuple[float, ...], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """From voxel sizes, direction cosines axis by axis, and the RAS coordinates of the center; as float32 holds it."""
    affine = np.eye(4)
    with np.errstate(invalid="ignore", over="ignore"):
        affine[:3, :3] = np.reshape(numbers[3:12], (3, 3)).T * numbers[:3]
        affine[:3, 3] = np.array(numbers[12:]) - affine[:3, :3] @ (np.array(shape) / 2)
        # A mask's sform is of that precision: both are then the same.
        return affine.astype(np.float32).astype(np.float64)
