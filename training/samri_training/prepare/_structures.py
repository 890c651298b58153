"""One mask file for each structure, as TotalSegmentator's datasets have them, read as one label map.

<case>/mri.nii.gz
<case>/segmentations/liver.nii.gz, spleen.nii.gz ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from samri.errors import InputError
from samri.io import Scan, read_scan
from samri_training.slices import check_same_grid, label_map
from samri_training.slices._layout import image_files, stem

FOLDER = "segmentations"


def holds_structures(folder: Path) -> bool:
    """Whether cases below a folder, at most two folders down, have their structures in files of their own."""
    return any(path.is_dir() for pattern in (f"*/{FOLDER}", f"*/*/{FOLDER}") for path in folder.glob(pattern))


def match_structures(
    folder: Path, wanted_image: Callable[[Path], bool], wanted_mask: Callable[[Path], bool]
) -> tuple[list[tuple[Path, tuple[Path, ...]]], list[Path], list[Path]]:
    """(image, structures) of each case; images without structures, and structures' folders without an image.

    Raises:
        InputError: A case with several images.
    """
    images: dict[Path, list[Path]] = {}
    structures: dict[Path, list[Path]] = {}
    for file in image_files(folder):
        if file.parent.name == FOLDER:
            if wanted_mask(file):
                structures.setdefault(file.parent.parent, []).append(file)
        elif wanted_image(file):
            images.setdefault(file.parent, []).append(file)
    for case, files in images.items():
        if case in structures and len(files) > 1:
            raise InputError(
                f"{case} has several images, {files[0].name} and {files[1].name}: choose with --images, such as "
                f"--images '*/{files[0].name}'"
            )
    pairs = [(files[0], tuple(structures[case])) for case, files in images.items() if case in structures]
    without = [image for case, files in images.items() if case not in structures for image in files]
    return pairs, without, [case / FOLDER for case in structures if case not in images]


def labels_of(files: Sequence[tuple[Path, ...]]) -> dict[str, int]:
    """Structure's name to label: sorted by name over all cases, from 1."""
    return {name: label for label, name in enumerate(sorted({stem(file) for some in files for file in some}), start=1)}


def read_structures(structures: Sequence[tuple[int, Path]], image: Scan) -> Scan:
    """One label map of all structures; where two overlap, the one with the higher label is kept, with a note.

    Args:
        structures: (label, file) of each.
        image: The scan that they were drawn on.

    Raises:
        InputError: One of them can't be read, lies on another grid, or holds several labels.
    """
    first: Scan | None = None
    merged = np.zeros(image.grid, np.uint16)
    notes: list[str] = []
    for label, file in sorted(structures):
        mask = read_scan(file)
        check_same_grid(image, mask)
        values = label_map(mask)
        if len(np.unique(values)) > 2:
            raise InputError(f"{file} holds several labels: a structure's own file has 0 and one other value")
        inside = values != 0
        covered = np.unique(merged[inside & (merged != 0)])
        if covered.size:
            names = ", ".join(stem(other) for number, other in structures if number in covered)
            notes.append(f"{file}: overlaps {names}; such voxels count as {stem(file)}")
        merged[inside] = label
        first = first or mask
    assert first is not None, "a case has structures"
    return dataclasses.replace(first, path=first.path.parent, voxels=merged, notes=(*first.notes, *notes))
