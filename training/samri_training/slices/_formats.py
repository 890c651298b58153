"""Formats of images that SAMRI doesn't read, so that nobody is told that the names are wrong."""

from __future__ import annotations

import os
from pathlib import Path

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
