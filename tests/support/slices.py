"""Small real folders of slices with masks, as `samri-prepare` leaves them, and their embedding."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from click.testing import Result

from samri_training.embed import main as samri_embed
from tests.support.commands import call


def write_slices(folder: Path, count: int, *, rows: int = 40) -> Path:
    """Pairs of image and mask, three to a case: some portrait, some landscape, not square pixels."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    affine = np.diag([0.5, 0.75, 3.0, 1.0])
    for index in range(count):
        shape = (rows + 3 * index % 20, 52, 1)
        image = rng.integers(0, 2000, shape).astype(np.int16)
        mask = np.zeros(shape, np.uint8)
        mask[5 : 15 + index, 10:30] = 1 + index % 3
        for role, voxels in (("img", image), ("seg", mask)):
            nib.save(nib.Nifti1Image(voxels, affine), folder / f"case{index // 3}_{role}_{index:03d}.nii.gz")
    return folder


def embed_slices(data: Path, folder: Path, *arguments: object) -> Result:
    """`samri-embed` in batches of two, three slices a shard."""
    options = ("--batch-size", 2, "--shard-size", 3, "--device", "cpu")
    return call(samri_embed, "--data-dir", data, "--save-dir", folder, *options, *arguments)
