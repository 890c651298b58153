"""Which files can be read, by their names, and the way out for those that can't."""

from __future__ import annotations

from pathlib import Path

from samri.errors import InputError

NIFTI = (".nii.gz", ".nii")
NIFTI_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")
MGH = (".mgz", ".mgh")
RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_READ = (*NIFTI, *NIFTI_PAIR, *MGH, *RASTER)

_DICOM = "dcm2niix -z y FOLDER turns a DICOM series into NIfTI"
_ITK = (
    "save it as .nii.gz from 3D Slicer or ITK-SNAP, or with Python's SimpleITK: "
    "sitk.WriteImage(sitk.ReadImage('{name}'), 'scan.nii.gz')"
)
# Suffixes of others to what the file is, and how to make a file of it that is read.
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((".nrrd", ".nhdr", ".nrrd.gz"), "an NRRD file", _ITK),
    ((".mha", ".mhd", ".mha.gz"), "a MetaImage file", _ITK),
    ((".gipl", ".gipl.gz"), "a GIPL file", _ITK),
    ((".vtk", ".vti"), "a VTK file", _ITK),
    ((".dcm", ".dicom", ".ima"), "a DICOM file", _DICOM),
    ((".mnc", ".mnc.gz"), "a MINC file", "mnc2nii {name} scan.nii converts it (MINC tools)"),
    ((".head", ".brik", ".brik.gz"), "an AFNI file", "3dAFNItoNIFTI converts it (AFNI), or nib-convert, with nibabel"),
    ((".par", ".rec"), "a Philips PAR/REC file", "parrec2nii converts it, which comes with nibabel"),
    ((".mif", ".mif.gz", ".mih"), "an MRtrix image", "mrconvert {name} scan.nii.gz converts it (MRtrix3)"),
    ((".gii", ".gii.gz"), "a surface", "give the volume it was made from"),
    ((".bmp", ".gif", ".webp", ".jp2", ".heic", ".svg", ".pdf"), "another kind of picture", "save it as PNG"),
    (
        (".npy", ".npz", ".mat", ".h5"),
        "an array without geometry",
        "save it with nibabel, or give it to the Python API",
    ),
    ((".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"), "an archive", "unpack it, and give one image of it"),
)


def known_suffix(path: Path) -> str:
    """The suffix of a kind of image that is read, in lower case.

    Raises:
        InputError: It has none; the text names the way out.
    """
    suffix = _suffix(path, _READ)
    if suffix is None:
        raise _unread(path)
    return suffix


def is_a_folder(path: Path) -> InputError:
    """The error about a folder in place of an image."""
    return InputError(f"{path} is a folder: give one image file ({_DICOM})")


def _unread(path: Path) -> InputError:
    if path.is_dir():
        return is_a_folder(path)
    for suffixes, kind, way_out in _OTHERS:
        if _suffix(path, suffixes) is not None:
            return InputError(f"{path} is {kind}, which samri doesn't read: {way_out.format(name=path.name)}")
    return InputError(
        f"{path} is not a kind of image that samri reads: convert it to one of {', '.join(_READ)} ({_DICOM})"
    )


def _suffix(path: Path, suffixes: tuple[str, ...]) -> str | None:
    lowered = path.name.lower()
    # The longest first: `.img.gz` before `.gz` of anything else.
    matching = (suffix for suffix in suffixes if lowered.endswith(suffix) and lowered != suffix)
    return max(matching, key=len, default=None)
