"""A slice dataset from arrays in memory: for tests, demos and data that no file format of ours holds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.io.optional import require
from samri_training.prepare._cut import BY_LAST_AXIS, Cut
from samri_training.prepare._dataset import prepare
from samri_training.prepare._report import Report
from samri_training.slices import Split


def prepare_arrays(
    output: Path,
    volumes: Mapping[Split, Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]],
    how: Cut = BY_LAST_AXIS,
    *,
    affine: npt.ArrayLike | None = None,
    overwrite: bool = False,
) -> Report:
    """Make a slice dataset from arrays, by the same path that files take.

    Args:
        output: Folder that appears when all is done.
        volumes: Split to case to (image, label map), both (H, W) or (I, J, K), of a dtype that NIfTI knows.
        how: How volumes become slices; with `Cut(axis=0)` an array (slices, H, W) is shown as it is.
        affine: (4, 4) of all of them, in mm; identity if None.
        overwrite: Replace an earlier dataset.

    Raises:
        InputError: A pair can't be used.
        OutputError: `output` can't be written, or exists.
    """
    nibabel = require("nibabel")
    matrix = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    with tempfile.TemporaryDirectory(prefix="samri-") as source:
        for split, cases in volumes.items():
            (Path(source) / split).mkdir()
            for case, arrays in cases.items():
                for role, array in zip(("img", "seg"), arrays, strict=True):
                    stored = array.astype(np.uint8) if array.dtype == bool else array
                    image = nibabel.Nifti1Image(stored, matrix, dtype=stored.dtype)
                    nibabel.save(image, Path(source) / split / f"{case}_{role}.nii")
        return prepare(Path(source), Path(output), how, overwrite=overwrite)
