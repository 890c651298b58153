"""Slices of a dataset: finding and pairing their files, and reading them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.io import read_scan
from samri_training.slices._scans import check_same_grid, gray, label_map, one_slice, slice_spacing
from samri_training.slices._splits import SPLITS, Split, split_named, split_of_folders

SIDECAR = "slices.json"
FORMAT, FORMAT_VERSION = "samri-slices", 1

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
_ROLE = re.compile(r"(?P<case>.+)_(?P<role>img|seg)(?:_(?P<tail>.*))?", re.DOTALL)


_T_co = TypeVar("_T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class LabelledSlice:
    """One slice with its ground truth.

    Attributes:
        name: Unique in its dataset.
        case: What is held out and compared as one: the patient, or the scan where patients aren't known.
        image: (H, W), in the file's own dtype.
        mask: (H, W) uint16 label map, 0 is background; it holds at least one label.
        spacing: Between rows and between columns, in mm; 1 where the file doesn't say.
        intensity_range: Percentiles of the whole volume's non-zero voxels, as the `medsam` profile wants them; None
            where the volume isn't known.
    """

    name: str
    case: str
    image: npt.NDArray[Any]
    mask: npt.NDArray[np.uint16]
    spacing: tuple[float, float]
    intensity_range: tuple[float, float] | None = None


class SliceSource(Protocol[_T_co]):
    """Slices by index, in an order that doesn't change: `LabelledSlice`s of a folder, `EmbeddedSlice`s of a store."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> _T_co: ...


@dataclass(frozen=True)
class SlicePair:
    """The files of one slice.

    Attributes:
        name: Path of the image below the folder searched, without its suffix; no two slices share one.
        case: The volume it was cut from: what stands before `_img_`, behind the folders above it but for the split.
        image: File of the image.
        mask: File of the label map.
        patient: Whom `case` shows; `case` itself where nothing else is recorded.
        split: By the name of a folder that it lies in, see `split_named`.
        tail: What stands behind `_img_`.
        intensity_range: See `LabelledSlice`.
    """

    name: str
    case: str
    image: Path
    mask: Path
    patient: str = ""
    split: Split | None = None
    tail: str = ""
    intensity_range: tuple[float, float] | None = None

    @property
    def subject(self) -> str:
        """The patient, or the scan where patients aren't known."""
        return self.patient or self.case

    def read(self) -> LabelledSlice:
        """Read and check both files.

        Raises:
            InputError: One of them is missing or damaged, isn't one slice, or both don't lie on the same grid; the
                mask holds something other than labels, or nothing.
        """
        scan, labels = read_scan(self.image), read_scan(self.mask)
        check_same_grid(scan, labels)
        view = one_slice(scan)
        image = gray(scan)
        mask = view.extract(label_map(labels)).astype(np.uint16)
        if not mask.any():
            raise InputError(f"{self.mask} is empty: every pixel is 0; remove the pair, or mark its structures")
        spacing = slice_spacing(scan, view)
        return LabelledSlice(self.name, self.subject, view.extract(image), mask, spacing, self.intensity_range)


def find_slices(folder: str | os.PathLike[str]) -> list[SlicePair]:
    """All slices below a folder: of one split, of a dataset, or of several datasets; sorted by name.

    Raises:
        InputError: No such folder, no slices in it, an image without its mask or a mask without its image.
    """
    folder = Path(folder)
    pairs, images, masks = match_slices(folder)
    for file, partner in [(file, "_seg_") for file in images] + [(file, "_img_") for file in masks]:
        raise InputError(f"{file} has no partner with {partner} in its name beside it: add that file, or remove this")
    if not pairs:
        if (unread_file := unread_below(folder)) is not None:
            raise InputError(f"{folder} holds no slices: {unread_file}")
        raise InputError(
            f"{folder} holds no slices (*_img_*.nii.gz with *_seg_*.nii.gz): samri-prepare makes them from volumes"
        )
    return pairs


def match_slices(folder: Path) -> tuple[list[SlicePair], list[Path], list[Path]]:
    """Pairs by name below a folder, images without a mask, and masks without an image.

    Raises:
        InputError: No such folder, or two files of one name that differ in their suffix only.
    """
    images: dict[Path, Path] = {}
    masks: dict[Path, Path] = {}
    for file in image_files(folder):
        match = _ROLE.fullmatch(stem(file))
        if match is None:
            continue
        files = images if match["role"] == "img" else masks
        key = file.parent / f"{match['case']}_img{'' if match['tail'] is None else '_' + match['tail']}"
        if key in files:
            raise InputError(f"{files[key]} and {file} have the same name but for the suffix: remove one of them")
        files[key] = file
    sidecars = {parent: _read_sidecar(parent / SIDECAR) for parent in {key.parent for key in images}}
    pairs = [
        _pair(folder, key, images[key], masks[key], sidecars[key.parent])
        for key in sorted(images.keys() & masks.keys(), key=lambda key: key.relative_to(folder).as_posix())
    ]
    without_mask = sorted(images[key] for key in images.keys() - masks.keys())
    without_image = sorted(masks[key] for key in masks.keys() - images.keys())
    return pairs, without_mask, without_image


def image_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder whose suffix says that it is an image; hidden files and folders are passed over.

    Raises:
        InputError: No such folder, or one that can't be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: check the path")

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    # Datasets are often put together from links to folders elsewhere.
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(parent, name)


def stem(file: Path) -> str:
    """Name without folder and image suffix: `case001_img_012` for `a/case001_img_012.nii.gz`."""
    return next(file.name[: -len(suffix)] for suffix in SUFFIXES if file.name.lower().endswith(suffix))


def _pair(folder: Path, key: Path, image: Path, mask: Path, cases: dict[str, Any]) -> SlicePair:
    match = _ROLE.fullmatch(key.name)
    assert match is not None  # It was found by this name.
    parents = key.parent.relative_to(folder).parts
    # The folder that was named itself, which may be called `test` for any reason, has to bear one of the exact names.
    own_split = next((split for split in SPLITS if split == folder.absolute().name), None)
    prefix = [part for part in parents if split_named(part) is None]
    recorded = cases.get(match["case"], {})
    case = "/".join([*prefix, match["case"]])
    return SlicePair(
        name=key.relative_to(folder).as_posix(),
        case=case,
        image=image,
        mask=mask,
        patient="/".join([*prefix, recorded["patient"]]) if recorded else case,
        split=split_of_folders(parents) or own_split,
        tail=match["tail"] or "",
        intensity_range=None if recorded.get("intensity_range") is None else tuple(recorded["intensity_range"]),
    )


def _read_sidecar(file: Path) -> dict[str, Any]:
    """Case to what `samri-prepare` recorded of it; empty where there is no such file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
            raise InputError(f"{file} was written by another version of samri-prepare: use that, or prepare again")
        cases: dict[str, Any] = content["cases"]
        for case in cases.values():
            low_high = case["intensity_range"]
            if not isinstance(case["patient"], str) or (low_high is not None and not _is_range(low_high)):
                raise ValueError("a case without its patient or intensity range")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({' '.join(str(error).split())}): prepare the dataset again") from error
    return cases


def _is_range(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(isinstance(value, (int, float)) for value in values)


_CONVERT = "convert them to NIfTI, for example with SimpleITK: sitk.WriteImage(sitk.ReadImage('a{0}'), 'a.nii.gz')"
_UNREAD = {
    ".nrrd": ("NRRD", _CONVERT),
    ".nhdr": ("NRRD", _CONVERT),
    ".mha": ("MetaImage", _CONVERT),
    ".mhd": ("MetaImage", _CONVERT),
    ".dcm": ("DICOM", "convert them to NIfTI with dcm2niix"),
    ".ima": ("DICOM", "convert them to NIfTI with dcm2niix"),
    ".hdr": ("Analyze or two-file NIfTI", "join them with nibabel: nib.save(nib.load('a.hdr'), 'a.nii.gz')"),
    ".mnc": ("MINC", "convert them to NIfTI with mnc2nii"),
    ".par": ("Philips PAR/REC", "convert them to NIfTI with dcm2niix"),
    ".h5": ("HDF5", "save each volume as NIfTI, for example with nibabel"),
    ".mat": ("MATLAB", "save each volume as NIfTI, for example with nibabel"),
}


def unread(name: str) -> str | None:
    """What is wrong with a file of that name, or files with that ending, and the way out; None where nothing is."""
    ending = Path(name.lower()).suffix or name.lower()
    if ending not in _UNREAD:
        return None
    format_name, way_out = _UNREAD[ending]
    return f"{format_name} ({ending}), which SAMRI doesn't read: {way_out.format(ending)}"


def unread_below(folder: Path) -> str | None:
    """The same of the first such file below a folder."""
    for _, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if (found := unread(name)) is not None and not name.startswith("."):
                return f"{name} is {found}"
    return None
