"""A NIfTI header, corrected where the correction is known, and the position of its grid in space."""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io._volume_stream import VolumeStream, one_line
from samri.io.optional import require

# Everything in a header that says where the grid lies and in which units; all but `dim`, which follows from the mask.
_GEOMETRY = (
    *("dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_HEADER_BYTES = {1: 348, 2: 540}
_FIRST_VOXEL = {1: 352, 2: 544}  # In one file, behind the header and four bytes that tell of extensions.
_VOX_OFFSET = {1: (108, "f"), 2: (168, "q")}  # Byte and type of the field.
_LONGEST_QUATERNION = 1.01  # Squared. What is longer is no rounding.
_UNSAID = 1e-6  # What the last digits of a float32 make of a unit quaternion.
_UNNOTICED = 0.1  # Of a voxel: sform and qform are rounded differently.
_UNITS = {1: "m", 3: "micrometers"}  # NIfTI's codes; anything else is read as mm.

# nibabel's logger belongs to the process: two readers at once would each keep the other's handlers.
_log_lock = threading.Lock()


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


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A checked header.

    Attributes:
        shape: As stored, all axes.
        dtype: Type of the voxels.
        offset: Byte of the first voxel, in the file that holds the voxels.
        scaling: Slope and intercept; (1, 0) where the header's slope is 0 or not finite, which means no scaling.
        affine: (4, 4) float64, voxel indices to millimetres in RAS+.
        grid: The fields that say so.
        notes: What was put right.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    scaling: tuple[float, float]
    affine: npt.NDArray[np.float64]
    grid: NiftiGrid
    notes: tuple[str, ...]


def read_header(source: VolumeStream, *, pair: bool) -> NiftiHeader:
    """Read the header at the beginning of a file.

    Args:
        source: The file with the header.
        pair: It is a `.hdr`, whose voxels lie in an `.img`.

    Raises:
        InputError: It isn't the header of a NIfTI file of that kind, or is invalid.
    """
    nibabel = require("nibabel")
    path = source.path
    block = source.bytes.read(_FIRST_VOXEL[2])
    version = _version(path, block, pair)
    try:
        block, repaired = _voxels_behind_header(path, block, version) if not pair else (block, [])
        module = nibabel.nifti1 if version == 1 else nibabel.nifti2
        header_class = getattr(module, f"Nifti{version}PairHeader" if pair else f"Nifti{version}Header")
        # Bytes, not the stream: nibabel would read the extensions too, which may name patients and aren't needed.
        with _collected_log(nibabel) as logged:
            header = header_class(block[: _HEADER_BYTES[version]])
        dimensions = int(header["dim"][0])
        shape = tuple(int(n) for n in header["dim"][1 : dimensions + 1])
        affine, placed = _place(header, shape)
        return NiftiHeader(
            shape,
            header.get_data_dtype(),
            int(header["vox_offset"]),
            _scaling(header),
            affine,
            NiftiGrid(version, header.endianness, {name: np.array(header[name]) for name in _GEOMETRY}),
            tuple(dict.fromkeys([*repaired, *logged, *placed])),
        )
    except InputError:
        raise
    except (
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        ValueError,
        OverflowError,
    ) as error:
        raise InputError(f"{path} has an invalid header ({one_line(error)}): export it again") from error


def _scaling(header: Any) -> tuple[float, float]:
    slope, intercept = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (slope, intercept)


def grid_of(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> NiftiGrid:
    """The NIfTI-1 fields, or NIfTI-2's for a long side, of a grid that another format places; in mm."""
    nibabel = require("nibabel")
    version: Literal[1, 2] = 2 if max(shape) > np.iinfo(np.int16).max else 1
    header = nibabel.Nifti2Header() if version == 2 else nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    with np.errstate(invalid="ignore", over="ignore"):
        header.set_qform(affine, 1, strip_shears=True)
        header.set_sform(affine, 1)
    return NiftiGrid(version, header.endianness, {name: np.array(header[name]) for name in _GEOMETRY})


def _version(path: Path, start: bytes, pair: bool) -> Literal[1, 2]:
    if not start:
        raise InputError(f"{path} is empty: copy it again")
    version: Literal[1, 2] | None = None
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        version = 1
    elif start[4:8] in (b"n+2\0", b"ni2\0"):
        version = 2
    if version is None:
        if not pair:
            raise InputError(f"{path} is not a NIfTI file despite its name: convert it or check the name")
        if struct.pack("<i", 348) == start[:4] or struct.pack(">i", 348) == start[:4]:
            raise InputError(
                f"{path} is the header of an Analyze image, which doesn't tell left from right: convert it "
                f"(nib-convert {path.name} scan.nii.gz, part of nibabel), and check its orientation in a viewer"
            )
        raise InputError(
            f"{path} is not the header of a NIfTI pair despite its name: check the name, or convert the "
            "image to .nii.gz with the program that wrote it (nib-convert or mri_convert, for many formats)"
        )
    single = b"n+" in (start[344:346], start[4:6])
    if single and pair:
        raise InputError(f"{path} is a one-file NIfTI: rename it to end in .nii")
    if not single and not pair:
        raise InputError(f"{path} is the header of a two-file NIfTI: rename it to end in .hdr, beside its .img")
    return version


def _voxels_behind_header(path: Path, block: bytes, version: Literal[1, 2]) -> tuple[bytes, list[str]]:
    """The header with voxels that don't begin inside it, as ITK and FSL read it too."""
    where, kind = _VOX_OFFSET[version]
    first = _FIRST_VOXEL[version]
    # The header's own size, 348 or 540, is its first number.
    order = next((order for order in "<>" if block[:4] == struct.pack(order + "i", _HEADER_BYTES[version])), None)
    if order is None or len(block) < first:
        return block, []
    (offset,) = struct.unpack_from(order + kind, block, where)
    if not 0 <= offset < first:
        return block, []
    if block[first - 4]:
        raise InputError(f"{path} has an invalid header (extensions, and voxels from byte {offset:g}): export it again")
    patched = bytearray(block)
    struct.pack_into(order + kind, patched, where, first)
    return bytes(patched), [f"its header says that voxels begin at byte {offset:g}, inside of it: read from {first}"]


def _place(header: Any, shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float64], list[str]]:
    """The affine, and notes on what a viewer may see differently."""
    notes = []
    placing = header.copy()
    bcd = np.array([header[f"quatern_{letter}"] for letter in "bcd"], np.float64)
    length = float((bcd**2).sum())
    if header["qform_code"] > 0 and 1 + header.quaternion_threshold < length <= _LONGEST_QUATERNION:
        for letter, value in zip("bcd", bcd / np.sqrt(length), strict=True):
            placing[f"quatern_{letter}"] = value
        if length > 1 + _UNSAID:
            notes.append("its qform's quaternion is longer than 1 by a rounding: normalized, as NIfTI's own code does")
    # An affine of infinities is nibabel's to compute and `read_scan`'s to refuse.
    with np.errstate(invalid="ignore", over="ignore"):
        affine = np.array(placing.get_best_affine(), np.float64)
        if header["sform_code"] > 0 and header["qform_code"] > 0:
            notes += _difference(header, affine, placing, shape)
    return affine, notes


def _difference(header: Any, sform: npt.NDArray[np.float64], placing: Any, shape: tuple[int, ...]) -> list[str]:
    """A note where a viewer that follows the qform shows the scan elsewhere."""
    try:
        qform = np.array(placing.get_qform(), np.float64)
    except ValueError:
        return ["its qform is invalid; SAMRI follows the sform, and so does --plane"]
    sides = [n - 1 for n in shape[:3]] + [0] * (3 - len(shape[:3]))
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*sides, 1]
    apart = float(np.hypot.reduce((corners @ (sform - qform).T)[:, :3], axis=1).max())
    smallest = float(np.hypot.reduce(sform[:3, :3], axis=0).min())
    if apart <= _UNNOTICED * smallest:
        return []
    unit = _UNITS.get(int(header["xyzt_units"]) & 0b111, "mm")
    return [
        f"its sform and qform place it differently, by up to {apart:.3g} {unit}: SAMRI follows the sform, and so does "
        "--plane; some viewers follow the qform"
    ]


@contextlib.contextmanager
def _collected_log(nibabel: Any) -> Iterator[list[str]]:
    """What nibabel logs about headers that it repairs, as a list rather than on stderr."""
    messages: list[str] = []
    logger: logging.Logger = nibabel.imageglobals.logger
    collector = logging.Handler()
    collector.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    with _log_lock:
        handlers, logger.handlers = logger.handlers, [collector]
        propagates, logger.propagate = logger.propagate, False
        try:
            yield messages
        finally:
            logger.handlers, logger.propagate = handlers, propagates
