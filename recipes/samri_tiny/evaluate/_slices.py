"""Where the test slices come from: drawn from label maps, cut from real scans, or anybody's slice dataset."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, MissingDependencyError
from samri.geometry import PLANES, Plane, nearest_ras_axes, plane_view
from samri.io import read_scan
from samri_tiny.evaluate._cases import FRAME, Mask, TestSlice
from samri_tiny.synthesis import draw_slice, hold_out, read_label_maps
from samri_training.evaluate import SliceFolder, prompt_generator
from samri_training.slices import image_files

# The labels of ITK-SNAP's crop come without names: these are what they look like.
MRICROP_NAMES = {
    1: "lateral ventricles",
    2: "third ventricle",
    3: "fluid behind the midbrain",
    4: "hippocampus, one side",
    5: "hippocampus, other side",
    6: "temporal horn",
    7: "caudate nuclei",
    8: "corpus callosum",
}
_TEMPLATE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_HALF = 127.5  # Of the template's maps, whose 255 is a probability of 1.
_ACROSS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}  # The axis cut, in RAS order.
# GIPL keeps no directions; ITK's are left, posterior, superior, which is also what this picture shows.
_LEFT_POSTERIOR_SUPERIOR = np.diag([-1.0, -1.0, 1.0, 1.0])


def synthetic_slices(folder: Path, count: int, seed: int) -> Iterator[TestSlice]:
    """`count` drawn slices of 256 x 256 of each subject in a folder of label maps that the recipe doesn't train on.

    A slice depends on the seed, its subject's name and its number alone, so that fewer are the first of more.

    Args:
        folder: All label maps of the training: `samri_tiny.synthesis.hold_out` says which of them are kept.
        count: Slices of each subject.
        seed: Random seed of the drawing.

    Raises:
        InputError: No such folder, none of its label maps is kept, or one can't be read.
    """
    files = [file for file in image_files(folder) if file.name.endswith((".nii", ".nii.gz"))]
    _, kept = hold_out(files)
    if not kept:
        raise InputError(f"{folder} holds {len(files)} label map(s) (.nii, .nii.gz): of fewer than 5 none is held out")
    for file in kept:
        (subject,) = read_label_maps([file])
        for number in range(count):
            drawn = draw_slice(subject, prompt_generator(seed, subject.name, number), (FRAME, FRAME))
            there = np.unique(drawn.labels[drawn.labels > 0]).tolist()
            structures = {f"label {drawn.codes[index]}": drawn.labels == index for index in there}
            yield TestSlice(f"{subject.name} {number}", subject.name, drawn.image, structures)


def template_slices(step: int, thinning: int = 1) -> Iterator[TestSlice]:
    """Every `step`-th axial, coronal and sagittal slice of the T1 template inside nilearn's package, without its skull.

    Its structures: the brain (all that isn't black), grey matter and white matter (their maps above 0.5).

    Args:
        step: Between slices.
        thinning: Only every so-manieth of those.

    Raises:
        MissingDependencyError: nilearn isn't installed.
    """
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise MissingDependencyError("the T1 template comes with nilearn: pip install nilearn, or pass --no-template")
    folder = Path(found.origin).parent / "datasets" / "data"
    t1, grey, white = (read_scan(folder / _TEMPLATE.format(name)) for name in ("t1", "gm", "wm"))
    structures = {"brain": t1.voxels > 0, "grey matter": grey.voxels > _HALF, "white matter": white.voxels > _HALF}
    yield from _planes("MNI152", t1.voxels, t1.affine, structures, step, thinning)


def mricrop_slices(folder: Path, step: int, thinning: int = 1) -> Iterator[TestSlice]:
    """Every `step`-th slice, in three planes, of the T1-weighted crop among ITK-SNAP's test data, with 8 structures.

    Args:
        folder: With `MRIcrop-orig.gipl.gz` and `MRIcrop-seg.gipl.gz`.
        step: Between slices.
        thinning: Only every so-manieth of those.

    Raises:
        InputError: They aren't there, are damaged or don't fit each other.
    """
    image, labels = (read_gipl(folder / f"MRIcrop-{name}.gipl.gz")[0] for name in ("orig", "seg"))
    if image.shape != labels.shape:
        raise InputError(f"{folder}: the image is {image.shape}, its labels are {labels.shape}")
    structures = {name: labels == label for label, name in MRICROP_NAMES.items()}
    yield from _planes("MRIcrop", image, _LEFT_POSTERIOR_SUPERIOR, structures, step, thinning)


def dataset_slices(folder: Path) -> Iterator[TestSlice]:
    """The slices of a dataset as `samri-prepare` writes it: those for testing, where it has splits.

    Raises:
        InputError: No slices there, or one of them can't be used.
    """
    source = SliceFolder(folder)
    for index in range(len(source)):
        sample = source[index]
        labels = [int(label) for label in np.unique(sample.mask) if label]
        structures = {f"label {label}": sample.mask == label for label in labels}
        yield TestSlice(sample.name, sample.case, sample.image, structures)


def _planes(
    subject: str,
    image: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    structures: dict[str, Mask],
    step: int,
    thinning: int,
) -> Iterator[TestSlice]:
    voxel_axes, _ = nearest_ras_axes(affine)
    for plane in PLANES:
        positions = range(step // 2, image.shape[voxel_axes[_ACROSS[plane]]], step)
        for index in positions[thinning // 2 :: thinning]:
            view = plane_view(image.shape, affine, plane, index)
            shown = {name: view.extract(mask) for name, mask in structures.items()}
            cut = {name: mask for name, mask in shown.items() if mask.any()}
            if cut:
                yield TestSlice(f"{plane} {index}", subject, view.extract(image), cut)


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
