"""Small real scans: NIfTI files with whatever geometry, written by nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def affine(
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    zooms: tuple[float, float, float] = (1.0, 1.0, 1.0),
    flips: tuple[int, int, int] = (1, 1, 1),
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Voxel indices to millimetres: turned about x, y and z by `angles` in radians, scaled, flipped and moved."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turned = turn @ turned
    matrix = np.eye(4)
    matrix[:3, :3] = turned * np.array(zooms) * np.array(flips)
    matrix[:3, 3] = offset
    return matrix


OBLIQUE = affine((0.2, -0.35, 0.1), (0.7, 0.9, 4.5), (1, 1, 1), (-83.25, 12.5, 40.125))
FLIPPED = affine((0.0, 0.0, 0.0), (1.0, 1.0, 3.0), (-1, 1, -1), (90, -126, 72))
OBLIQUE_FLIPPED = affine((1.2, 0.3, -0.4), (0.5, 2.0, 1.0), (-1, 1, 1), (1, 2, 3))


def save_nifti(
    path: Path,
    data: np.ndarray,
    *,
    sform: np.ndarray | None = None,
    sform_code: int = 1,
    qform: np.ndarray | None = None,
    qform_code: int = 1,
    units: tuple[str, str] = ("mm", "sec"),
    image_class: Any = nib.Nifti1Image,
    big_endian: bool = False,
) -> Path:
    """Write `data` with exactly these forms and codes; a form left out has code 0."""
    header = image_class.header_class(endianness=">" if big_endian else "<")
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_qform(qform, qform_code if qform is not None else 0)
    header.set_sform(sform, sform_code if sform is not None else 0)
    header.set_xyzt_units(*units)
    nib.save(image_class(data, None, header), path)
    return path


def brain_like(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An ellipsoid with inner structure and noise, int16: something with edges, unlike in every direction."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape], indexing="ij")
    inside = sum((axis / (0.7 + 0.1 * number)) ** 2 for number, axis in enumerate(grid)) < 1
    waves = sum(np.sin((4 + 3 * number) * axis + number) for number, axis in enumerate(grid))
    return (inside * (600 + 100 * waves) + rng.normal(0, 15, shape)).astype(np.int16)
