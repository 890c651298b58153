"""NIfTI in and out through nibabel, with the header fields that place the grid in space kept byte for byte."""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io._optional import require
from samri.staging import staged_file

# Everything in a header that says where the grid lies and in which units; all but `dim`, which follows from the mask.
_GEOMETRY = (
    *("dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_GZIP_MAGIC = b"\x1f\x8b"
_LARGEST_HEADER = 540  # NIfTI-2's; NIfTI-1 has 348 bytes.
_MOST_DEFLATED = 1032  # No deflate stream grows by more than this factor.
_SFORM_ALIGNED = 2
_LONGEST_NIFTI1_SIDE = 32767

# nibabel's logger belongs to the process: two readers at once would each keep the other's handlers.
_log_lock = threading.Lock()


class MissingFrameError(InputError):
    """A 4-D file holds several frames, and none was chosen."""


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """Where a NIfTI grid lies: the header fields that say so, unchanged.

    Attributes:
        version: NIfTI-1 or NIfTI-2.
        byte_order: `<` or `>`, of the file.
        fields: Header field to value, as stored.
    """

    version: Literal[1, 2]
    byte_order: str
    fields: Mapping[str, npt.NDArray[Any]]


class NiftiImage(NamedTuple):
    """What `read_nifti` returns: (I, J) or (I, J, K) voxels of one frame and their place."""

    voxels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    grid: NiftiGrid
    frame: int
    frames: int
    notes: tuple[str, ...]


def read_nifti(path: Path, frame: int | None) -> NiftiImage:
    """Read one frame of a NIfTI file, plain or gzipped.

    Raises:
        InputError: It isn't whole, isn't NIfTI, or holds what can't be segmented.
        MissingFrameError: Several frames and no `frame`.
        OSError: The file can't be opened.
    """
    nibabel = require("nibabel")
    try:
        with _decompressed(path) as stream:
            version = _version(path, stream)
            image_class = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
            # A file object, not a name: the rest of a gzip stream can then be read to reach its checksum.
            holder = nibabel.FileHolder(fileobj=stream)
            # An affine of infinities is nibabel's to compute and `read_scan`'s to refuse.
            with _collected_log(nibabel) as notes, np.errstate(invalid="ignore", over="ignore"):
                image = image_class.from_file_map({"image": holder}, mmap=False)
            header, shape = image.header, tuple(int(n) for n in image.shape)
            _check_dtype(path, header.get_data_dtype())
            _check_shape(path, shape)
            offset, data_bytes = int(image.dataobj.offset), math.prod(shape) * header.get_data_dtype().itemsize
            _check_size(path, offset, data_bytes)
            frames = shape[3] if len(shape) == 4 else 1
            chosen = _choose_frame(path, frames, frame)
            voxels = np.asanyarray(image.dataobj[..., chosen] if len(shape) == 4 else image.dataobj)
            # To the end, whichever frame it was: only there does gzip compare its checksum.
            while stream.read(1 << 16):
                pass
            if stream.tell() < offset + data_bytes:
                raise InputError(f"{path} breaks off: its header promises {data_bytes} bytes of voxels: copy it again")
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is a damaged or broken off gzip file ({error}): copy it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputError(f"{path} breaks off ({_one_line(error)}): copy it again") from error
    except (
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        ValueError,
        OverflowError,
    ) as error:
        raise InputError(f"{path} has a header that makes no sense ({_one_line(error)}): export it again") from error
    grid = NiftiGrid(version, header.endianness, {name: np.array(header[name]) for name in _GEOMETRY})
    return NiftiImage(
        # In the file's order of axes, the first one fastest: turning a whole volume for one slice of it takes longer.
        np.require(voxels, voxels.dtype.newbyteorder("="), "W"),
        np.array(image.affine, dtype=np.float64),
        grid,
        chosen,
        frames,
        tuple(f"{path}: {note}" for note in notes),
    )


def nibabel_version() -> str:
    """Version of the nibabel that writes masks.

    Raises:
        MissingDependencyError: It isn't installed.
    """
    return str(require("nibabel").__version__)


def write_nifti(path: Path, labels: npt.NDArray[Any], grid: NiftiGrid | None) -> None:
    """Write uint8 or uint16 labels with the geometry of `grid`, or with an identity affine where there is none.

    Raises:
        ValueError: The name doesn't end in .nii or .nii.gz.
        OutputError: The file can't be written.
    """
    nibabel = require("nibabel")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: a mask is written as .nii or .nii.gz")
    version = grid.version if grid is not None else 2 if max(labels.shape) > _LONGEST_NIFTI1_SIDE else 1
    image_class = nibabel.Nifti2Image if version == 2 else nibabel.Nifti1Image
    header = image_class.header_class(endianness="<" if grid is None else grid.byte_order)
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape)
    if grid is None:
        header.set_sform(np.eye(4), code=_SFORM_ALIGNED)
    else:
        # After the shape, which resets the voxel sizes of the axes beyond it: a qform may need them.
        for name, value in grid.fields.items():
            header[name] = value
    # No affine: nibabel would write it over the sform if it differed from the header's by a rounding.
    image = image_class(labels, None, header)
    with staged_file(path) as staged, staged.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # No name and no time inside, so that equal masks are equal files.
            # A mask is mostly one value, which the quickest level packs a hundredfold already.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=1) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)


@contextlib.contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, gunzipped if they are gzip, whatever the name says."""
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if not zipped:
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            # The interface is that of any binary file.
            yield stream  # type: ignore[misc]


@contextlib.contextmanager
def _collected_log(nibabel: Any) -> Iterator[list[str]]:
    """What nibabel logs about headers that it repairs, as a list rather than on stderr."""
    messages: list[str] = []
    logger: logging.Logger = nibabel.imageglobals.logger
    collector = logging.Handler()
    collector.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    with _log_lock:
        handlers, logger.handlers = logger.handlers, [collector]
        try:
            yield messages
        finally:
            logger.handlers = handlers


def _version(path: Path, stream: IO[bytes]) -> Literal[1, 2]:
    start = stream.read(_LARGEST_HEADER)
    stream.seek(0)
    if start[344:348] == b"n+1\0":
        return 1
    if start[4:8] == b"n+2\0":
        return 2
    if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
        raise InputError(f"{path} is the header of a two-file NIfTI: convert the pair to one .nii.gz")
    if not start:
        raise InputError(f"{path} is empty: copy it again")
    raise InputError(f"{path} is not a NIfTI file, although its name says so: convert it or check the name")


def _check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind == "c":
        raise InputError(f"{path} holds complex numbers: save their magnitude and use that")
    if dtype.fields is not None:
        raise InputError(f"{path} holds {'RGBA' if len(dtype.fields) == 4 else 'RGB'} colors: save one gray channel")
    if dtype.kind not in "uif":
        raise InputError(f"{path} holds values of type {dtype}: save it as integers or floats")


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) > 4:
        raise InputError(f"{path} is {len(shape)}-D, of shape {shape}: save a 2-D, 3-D or 4-D part of it")
    if len(shape) < 2:
        raise InputError(f"{path} is no image: its shape is {shape}")
    if min(shape) < 1:
        raise InputError(f"{path} has no voxels: its shape is {shape}")


def _check_size(path: Path, offset: int, data_bytes: int) -> None:
    """Before memory is asked for: can the file hold what its header promises?"""
    with path.open("rb") as file:
        limit = path.stat().st_size * (_MOST_DEFLATED if file.read(2) == _GZIP_MAGIC else 1)
    if offset + data_bytes > limit:
        raise InputError(f"{path} breaks off: its header promises {data_bytes} bytes of voxels: copy it again")


def _choose_frame(path: Path, frames: int, frame: int | None) -> int:
    if frame is None and frames > 1:
        raise MissingFrameError(f"{path} has {frames} frames: choose one with --frame 0 to {frames - 1}")
    if frame is not None and not 0 <= frame < frames:
        held = "one frame only" if frames == 1 else f"frames 0 to {frames - 1}"
        raise InputError(f"{path} has {held}: there is no frame {frame}")
    return frame or 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
