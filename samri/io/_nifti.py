"""NIfTI in and out through nibabel, with the header fields that place the grid in space kept byte for byte."""

from __future__ import annotations

import contextlib
import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io._label_names import CARET, label_extension
from samri.io._nifti_header import NiftiGrid, NiftiHeader, read_header
from samri.io._volume_stream import VolumeStream, check_shape, choose_frame, volume_stream
from samri.io.optional import require
from samri.staging import staged_file

_SFORM_ALIGNED = 2
_LONGEST_NIFTI1_SIDE = 32767


class VolumeImage(NamedTuple):
    """The result of a volume reader: (I, J) or (I, J, K) voxels of one frame and their place."""

    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    grid: NiftiGrid
    frame: int
    frames: int
    notes: tuple[str, ...]


def read_nifti(path: Path, frame: int | None) -> VolumeImage:
    """Read one frame of a NIfTI file, plain or gzipped.

    Raises:
        InputError: It isn't whole, isn't NIfTI, or holds what can't be segmented.
        MissingFrameError: Several frames and no `frame`.
        OSError: The file can't be read.
    """
    with volume_stream(path) as source:
        header = read_header(source, pair=False)
        return _read_voxels(source, header, frame)


def read_nifti_pair(path: Path, frame: int | None) -> VolumeImage:
    """Read one frame of a NIfTI pair, a `.hdr` and an `.img`, either of which may be named; errors as `read_nifti`."""
    header_path, voxel_path = _pair(path)
    with volume_stream(header_path) as source:
        header = read_header(source, pair=True)
    with volume_stream(voxel_path) as source:
        return _read_voxels(source, header, frame)


def nibabel_version() -> str:
    """Version of the nibabel that reads and writes headers.

    Raises:
        MissingDependencyError: It isn't installed.
    """
    return str(require("nibabel").__version__)


def write_nifti(
    path: Path,
    labels: npt.NDArray[Any],
    grid: NiftiGrid | None,
    names: Mapping[int, str] | None = None,
    colors: Mapping[int, str] | None = None,
) -> None:
    """Write uint8 or uint16 labels with the geometry of `grid`, or with an identity affine where there is none.

    With `names`, label to name, the header gets the extension that holds them and their `colors`.

    Raises:
        ValueError: The name doesn't end in .nii or .nii.gz.
        OutputError: The file can't be written.
    """
    nibabel = require("nibabel")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a mask is written as .nii or .nii.gz")
    version = grid.version if grid is not None else 2 if max(labels.shape) > _LONGEST_NIFTI1_SIDE else 1
    header_class = nibabel.Nifti2Header if version == 2 else nibabel.Nifti1Header
    header = header_class(endianness="<" if grid is None else grid.byte_order)
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape)
    header.set_slope_inter(1, 0)
    extension = _extension(label_extension(names, colors), header.endianness) if names else bytes(4)
    header["vox_offset"] = header.sizeof_hdr + len(extension)
    if grid is None:
        header.set_sform(np.eye(4), code=_SFORM_ALIGNED)
    else:
        # After the shape, which resets the voxel sizes of the axes beyond it: a qform may need them.
        for name, value in grid.fields.items():
            header[name] = value
    # nibabel's image would write an affine of its own over the sform if that differs by a rounding, and refuses a
    # quaternion that is longer than 1 by one.
    stored = np.asfortranarray(labels, dtype=header.get_data_dtype())
    with staged_file(path) as staged, staged.open("wb") as file, contextlib.ExitStack() as closing:
        stream: IO[bytes] = file
        if path.name.lower().endswith(".gz"):
            # No name and no time inside, so that equal masks are equal files.
            # A mask is mostly one value, which the quickest level packs a hundredfold already.
            packer = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=1)
            stream = cast("IO[bytes]", closing.enter_context(packer))
        stream.write(header.binaryblock)
        stream.write(extension)
        stream.write(stored.ravel(order="K").view(np.uint8).data)


def _extension(content: bytes, byte_order: str) -> bytes:
    """What stands between header and voxels: the mark that extensions follow, and one of them, of whole 16 bytes."""
    # Voxels begin at a whole number of 16 bytes too. Readers of XML know spaces behind it, but no NUL bytes.
    content += b" " * (-(len(content) + 8) % 16)
    return b"\1\0\0\0" + struct.pack(f"{byte_order}ii", len(content) + 8, CARET) + content


def _pair(path: Path) -> tuple[Path, Path]:
    """The `.hdr` and the `.img`, plain or gzipped, that belong to one of them."""
    name = path.name
    zipped = name[-3:] if name.lower().endswith(".gz") else ""
    stem, suffix = name[: len(name) - len(zipped) - 4], name[len(name) - len(zipped) - 4 :][:4]
    lower_suffix = suffix.lower()
    other = ".img" if lower_suffix == ".hdr" else ".hdr"
    other = other.upper() if suffix.isupper() else other
    candidates = [path.with_name(stem + other + end) for end in dict.fromkeys((zipped, "", ".gz"))]
    partner = next((candidate for candidate in candidates if candidate.exists()), None)
    # What is wrong with the file itself is told first.
    if path.exists() and partner is None:
        if lower_suffix == ".hdr":
            with volume_stream(path) as source:
                read_header(source, pair=True)
        raise InputError(f"{path} needs {candidates[0].name} beside it: copy both, or convert the pair to one .nii.gz")
    second = partner or candidates[0]
    return (path, second) if lower_suffix == ".hdr" else (second, path)


def _read_voxels(source: VolumeStream, header: NiftiHeader, frame: int | None) -> VolumeImage:
    nibabel = require("nibabel")
    path = source.path
    _check_dtype(path, header.dtype)
    shape = check_shape(path, header.shape)
    frames = shape[3] if len(shape) == 4 else 1
    data_bytes = source.check(shape, header.dtype, header.offset, frames)
    index = choose_frame(path, frames, frame)
    # A file object, not a name: the rest of a gzip stream can then be read to reach its checksum.
    proxy = nibabel.arrayproxy.ArrayProxy(
        source.bytes, (shape, header.dtype, header.offset, *header.scaling), mmap=False
    )
    try:
        voxels = np.asanyarray(proxy[..., index] if len(shape) == 4 else proxy)
    except ValueError as error:
        raise source.broken_off(data_bytes) from error
    source.finish(header.offset, data_bytes)
    return VolumeImage(
        # In the file's order of axes, the first one fastest: turning a whole volume for one slice of it takes longer.
        np.require(voxels, voxels.dtype.newbyteorder("="), "W"),
        header.affine,
        header.grid,
        index,
        frames,
        header.notes,
    )


def _check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c":
        raise InputError(f"{path} holds complex numbers: save their magnitude and use that")
    if dtype.fields is not None:
        raise InputError(f"{path} holds {'RGBA' if len(dtype.fields) == 4 else 'RGB'} colors: save one gray channel")
    if dtype.kind not in "uif":
        raise InputError(f"{path} holds values of type {dtype}: save it as integers or floats")
