"""The slices on which a lower precision is judged: real ones, since noise and phantoms forgive what anatomy doesn't."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from samri.errors import InputError
from samri.geometry import Plane, axis_view, plane_view, whole_view
from samri.preprocessing import Profile
from samri_export._verification_cases import VerificationSlice, first_frame, slice_of_view

_TEMPLATE = Path("datasets", "data", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
_TEMPLATE_SLICES: tuple[tuple[Plane, int], ...] = (
    ("axial", 72),
    ("axial", 108),
    ("coronal", 96),
    ("coronal", 140),
    ("sagittal", 70),
    ("sagittal", 98),
)
_OF_A_VOLUME = (0.35, 0.5, 0.65)


def gate_slices(scans: Sequence[Path], profile: Profile) -> tuple[VerificationSlice, ...]:
    """Three slices of each scan, or six of the T1 template that comes with nilearn if there is no scan.

    Scans are numbered, since a file name may tell whose scan it is.

    Raises:
        InputError: A scan can't be read, or there is none and nilearn isn't installed.
    """
    if scans:
        return tuple(
            picture for number, scan in enumerate(scans, start=1) for picture in _of_scan(scan, profile, number)
        )
    template = _template()
    if template is None:
        raise InputError(
            "fp16 and int8 graphs are checked on real slices, and there are none: name a scan with --verify-image, "
            "or pip install nilearn for its T1 template"
        )
    scan = first_frame(template)
    return tuple(
        slice_of_view(scan, plane_view(scan.grid, scan.affine, plane, index), profile, f"T1 template, {plane} {index}")
        for plane, index in _TEMPLATE_SLICES
    )


def _of_scan(path: Path, profile: Profile, number: int) -> list[VerificationSlice]:
    scan, name = first_frame(path), f"own image {number}"
    if len(scan.grid) == 2 or 1 in (scan.grid[0], scan.grid[2]):
        return [slice_of_view(scan, whole_view(scan.grid), profile, name)]
    places = dict.fromkeys(int(scan.grid[2] * part) for part in _OF_A_VOLUME)
    return [slice_of_view(scan, axis_view(scan.grid, 2, place), profile, f"{name}, slice {place}") for place in places]


def _template() -> Path | None:
    spec = importlib.util.find_spec("nilearn")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _TEMPLATE
    return path if path is not None and path.is_file() else None
