"""Cutting one volume and its label map into slice files."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import Plane, SliceView, axis_view, nearest_ras_axes, plane_view, single_axis, whole_view
from samri.io import MissingFrameError, Scan, read_scan
from samri.io.optional import require
from samri.preprocessing import percentile_range
from samri_training.prepare._sources import SourcePair
from samri_training.prepare._structures import read_structures
from samri_training.slices import SIZES, check_same_grid, gray, label_map, size_of

_RAS = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Cut:
    """How volumes become slices.

    Attributes:
        plane: Anatomical plane, shown as radiologists do; None cuts along `axis`.
        axis: Array axis that the slices lie along.
        frame: Index of the frame in a 4-D image; `all` makes each frame a case of its own; None for 3-D images.
        min_pixels: A label with fewer pixels in a slice is no longer marked there.
    """

    plane: Plane | None = None
    axis: int = 2
    frame: int | Literal["all"] | None = None
    min_pixels: int = 10


BY_LAST_AXIS = Cut()


@dataclass(frozen=True)
class CutCase:
    """What came of one volume.

    Attributes:
        case: Its name in the dataset.
        pair: Where it came from.
        frame: Index of the frame in a 4-D image.
        slices: Names of its slices: what stands behind `_img_`.
        shapes: (height, width) to number of slices.
        labels: Label to what there is of it.
        unmarked: Slices left out since nothing was marked in them.
        thinned: Slices left out since all that was marked had fewer than `min_pixels`.
        intensity_range: Percentiles of the volume; None for a ready 2-D pair.
        notes: What the reader had to put right.
    """

    case: str
    pair: SourcePair
    frame: int | None
    slices: list[str]
    shapes: Counter[tuple[int, int]]
    labels: dict[int, LabelTally]
    unmarked: int
    thinned: int
    intensity_range: tuple[float, float] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """A pair that can't be used; the reason names the file and the way out."""

    what: str
    reason: str


class _Timepoint(NamedTuple):
    """Image and label map of one frame, checked against each other."""

    scan: Scan
    image: npt.NDArray[Any]
    labels: npt.NDArray[np.uint16]
    notes: tuple[str, ...]


def cut_pair(pair: SourcePair, folder: Path, how: Cut) -> list[CutCase] | Refused:
    """Write the slices of one pair to `folder`, which exists.

    Returns:
        One case, or one a frame; `Refused`, with nothing written, where the pair can't be used.

    Raises:
        OSError: A slice can't be written.
    """
    paths: list[Path] = []
    try:
        return [_cut_frame(pair, frame, index, folder, how, paths) for index, frame in _read_frames(pair, how.frame)]
    except InputError as error:
        for file in paths:
            file.unlink()
        return Refused(str(pair.mask), str(error))


def _read_frames(pair: SourcePair, frame: int | Literal["all"] | None) -> Iterator[tuple[int | None, _Timepoint]]:
    """Index (None unless all are asked for) and content of each frame asked for."""
    if frame != "all":
        try:
            scan = read_scan(pair.image, frame)
        except MissingFrameError as error:
            raise InputError(f"{error}, or --frame all") from error
        yield None, _checked(scan, _read_mask(pair, scan), pair)
        return
    scan = read_scan(pair.image, 0)
    for index in range(scan.frames):
        if index:
            scan = read_scan(pair.image, index)
        yield index if scan.frames > 1 else None, _checked(scan, _read_mask(pair, scan), pair)


def _read_mask(pair: SourcePair, scan: Scan) -> Scan:
    """The label map of this frame: its own, or the one for all frames."""
    if pair.structures:
        return read_structures(pair.structures, scan)
    path = pair.mask
    try:
        return read_scan(path)
    except MissingFrameError:
        mask = read_scan(path, 0)
    if mask.frames != scan.frames:
        raise InputError(
            f"{path} has {mask.frames} frames, its image {scan.path} {scan.frames}: a label map has one frame, or one "
            "for each of the image's; if its frames are structures, merge them into one label map"
        )
    return mask if scan.frame == 0 else read_scan(path, scan.frame)


def _checked(scan: Scan, mask: Scan, pair: SourcePair) -> _Timepoint:
    check_same_grid(scan, mask)
    image, labels = gray(scan), label_map(mask)
    notes = (*scan.notes, *mask.notes)
    if pair.labels is not None:
        labels, label_notes = pair.labels.checked(labels, mask.path)
        notes += label_notes
    if not labels.any():
        raise InputError(f"{mask.path} is empty: every voxel is 0; mark its structures, or leave the pair out")
    if labels.shape != scan.grid:  # One of them is a picture, (H, W), the other a NIfTI of one slice, (1, H, W).
        labels = labels.reshape(scan.grid)
    return _Timepoint(scan, smallest_exact(image), labels, notes)


def _cut_frame(
    pair: SourcePair, frame: _Timepoint, index: int | None, folder: Path, how: Cut, written: list[Path]
) -> CutCase:
    if _is_one_slice(frame.scan.grid):
        views = [(pair.tail or "000", whole_view(frame.scan.grid))]
        case, intensity_range = pair.case, pair.intensity_range
    else:
        views = list(_views(frame.scan, how))
        case = f"{pair.case}_{pair.tail}" if pair.tail else pair.case
        intensity_range = percentile_range(frame.image)
    if index is not None:
        case = f"{case}_frame{index:03d}"
    writer = SliceWriter(frame.scan)
    tallies: dict[int, LabelTally] = {}
    shapes: Counter[tuple[int, int]] = Counter()
    slices: list[str] = []
    unmarked = thinned = 0
    for name, view in views:
        mask = view.extract(frame.labels)
        label_tallies = _tally(mask, how.min_pixels)
        for label, tally in label_tallies.items():
            tallies[label] = tallies.get(label, LabelTally()) + tally
        labels_kept = [label for label, tally in label_tallies.items() if tally.slices]
        if not labels_kept:
            unmarked, thinned = unmarked + (not label_tallies), thinned + bool(label_tallies)
            continue
        mask = np.where(np.isin(mask, labels_kept), mask, 0).astype(np.uint8 if max(labels_kept) <= 255 else np.uint16)
        for role, pixels in (("img", view.extract(frame.image)), ("seg", mask)):
            file = folder / f"{case}_{role}_{name}.nii.gz"
            written.append(file)
            writer.write(file, pixels, view)
        slices.append(name)
        shapes[view.shape] += 1
    return CutCase(case, pair, index, slices, shapes, tallies, unmarked, thinned, intensity_range, frame.notes)


def _views(scan: Scan, how: Cut) -> Iterator[tuple[str, SliceView]]:
    """Every slice of a volume with its name: its index, with zeros in front so that names sort as slices do."""
    grid = scan.grid
    try:
        axis = how.axis if how.plane is None else nearest_ras_axes(scan.affine)[0][_RAS[how.plane]]
    except InputError as error:
        raise InputError(f"{scan.path}: {error}") from error
    count = grid[axis]
    if min(n for other, n in enumerate(grid) if other != axis) < 2:
        raise InputError(f"{scan.path} of shape {grid} has no 2-D slices along axis {axis}: choose another")
    digits = max(3, len(str(count - 1)))
    for index in range(count):
        view = axis_view(grid, axis, index) if how.plane is None else plane_view(grid, scan.affine, how.plane, index)
        yield f"{index:0{digits}d}", view


def _is_one_slice(grid: tuple[int, ...]) -> bool:
    return len(grid) == 2 or single_axis(grid) is not None


def _tally(mask: npt.NDArray[np.uint16], min_pixels: int) -> dict[int, LabelTally]:
    """Each label of a slice but the background."""
    pixels = np.bincount(mask.ravel())
    return {
        int(label): LabelTally.of(int(pixels[label]), mask.size, min_pixels)
        for label in np.flatnonzero(pixels)
        if label != 0
    }


@dataclass(frozen=True)
class LabelTally:
    """One label's count over slices.

    Attributes:
        slices: Slices that it is marked in.
        pixels: Pixels in those.
        small: Slices where it covers less than 0.5 % of the image.
        medium: From 0.5 to 3.5 %.
        large: More than 3.5 %.
        dropped: Slices where it had too few pixels to be kept.
    """

    slices: int = 0
    pixels: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, pixels: int, area: int, min_pixels: int) -> LabelTally:
        """The tally of one slice: `pixels` of the label in an image of `area` pixels."""
        if pixels < min_pixels:
            return cls(dropped=1)
        size = size_of(pixels, (area,))
        return cls(1, pixels, *(int(size == each) for each in SIZES))

    def __add__(self, other: LabelTally) -> LabelTally:
        return LabelTally(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


_ALIGNED = 2  # NIfTI's code for coordinates of some other file, here the volume.
_SPATIAL_UNIT = 0b111
_GZIP_LEVEL = 1  # On slices of heads, level 9 takes five times as long for 1 to 3 % fewer bytes.


def slice_affine(view: SliceView, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(4, 4) affine of the array (H, W, 1) that shows `view`: (row, column, 0) lies where its voxel does.

    Args:
        view: View of a volume, or of a grid that is one slice.
        affine: (4, 4) of the volume.
    """
    axes = view.describe()
    rows, columns = axes["rows_from_axis"], axes["columns_from_axis"]
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
