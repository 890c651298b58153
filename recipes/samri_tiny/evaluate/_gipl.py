"""GIPL, the old format of ITK-SNAP's test image: 256 bytes of header, then the voxels, all big-endian."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError

_HEADER_BYTES = 256
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
# The format's number of a voxel's type. Source: ITK's itkGiplImageIO.cxx.
_TYPES = {7: ">i1", 8: ">u1", 15: ">i2", 16: ">u2", 31: ">u4", 32: ">i4", 64: ">f4", 65: ">f8"}


def read_gipl(path: Path) -> tuple[npt.NDArray[Any], tuple[float, float, float]]:
    """Voxels (I, J, K) of a 3-D `.gipl` or `.gipl.gz`, in native byte order, and the distance between them in mm.

    The format keeps no directions: i, j and k run as ITK takes them to, to the left, posterior and superior.

    Raises:
        InputError: The file is missing, damaged, or not such an image.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the path") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if len(data) < _HEADER_BYTES or struct.unpack_from(">I", data, 252)[0] not in _MAGIC:
        raise InputError(f"{path} is not a GIPL image")
    *shape, frames = struct.unpack_from(">4H", data, 0)
    (kind,) = struct.unpack_from(">H", data, 8)
    spacing = struct.unpack_from(">3f", data, 10)
    if kind not in _TYPES or frames > 1:
        raise InputError(f"{path}: voxels of GIPL type {kind} in {frames} frame(s) can't be read: convert it to NIfTI")
    dtype = np.dtype(_TYPES[kind])
    if len(data) - _HEADER_BYTES != int(np.prod(shape)) * dtype.itemsize:
        raise InputError(f"{path} is damaged: {len(data) - _HEADER_BYTES} bytes of voxels don't fill {tuple(shape)}")
    # The first axis runs fastest.
    voxels = np.frombuffer(data, dtype, offset=_HEADER_BYTES).reshape(shape[::-1]).transpose(2, 1, 0)
    return voxels.astype(dtype.newbyteorder("=")), (spacing[0], spacing[1], spacing[2])
