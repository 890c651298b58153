"""Scans of other formats on their way into slices."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from samri_training.prepare._cut import BY_LAST_AXIS, CutCase, cut_pair
from samri_training.prepare._sources import SourcePair
from tests.support.scans import OBLIQUE, brain_like, save_nifti


def labels_of(image: np.ndarray) -> np.ndarray:
    return (image > 300).astype(np.int16)


def test_a_freesurfer_image_and_a_nifti_mask_become_slices(tmp_path):
    image = brain_like((20, 24, 5))
    nib.save(nib.MGHImage(image, OBLIQUE), tmp_path / "scan.mgz")
    mask = save_nifti(tmp_path / "mask.nii.gz", labels_of(image), sform=OBLIQUE)
    (tmp_path / "out").mkdir()
    cases = cut_pair(SourcePair("scan", "scan", tmp_path / "scan.mgz", mask), tmp_path / "out", BY_LAST_AXIS)
    assert isinstance(cases, list), cases
    assert len(cases[0].slices) >= 3
    written = nib.load(tmp_path / "out" / f"scan_img_{cases[0].slices[0]}.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj)[..., 0], image[:, :, int(cases[0].slices[0])])


def test_one_coronal_slice_is_taken_as_it_is(tmp_path):
    image = brain_like((20, 1, 24))
    paths = [
        save_nifti(tmp_path / name, data, sform=OBLIQUE)
        for name, data in (("scan.nii", image), ("mask.nii", labels_of(image)))
    ]
    (tmp_path / "out").mkdir()
    cases = cut_pair(SourcePair("scan", "scan", *paths), tmp_path / "out", BY_LAST_AXIS)
    assert isinstance(cases, list), cases
    (case,) = cases
    assert isinstance(case, CutCase)
    written = nib.load(tmp_path / "out" / f"scan_img_{case.slices[0]}.nii.gz")
    assert written.shape == (20, 24, 1)
    np.testing.assert_array_equal(np.asarray(written.dataobj)[..., 0], image[:, 0])
    np.testing.assert_allclose(written.affine @ [3, 5, 0, 1], OBLIQUE @ [3, 0, 5, 1], atol=1e-4)


def test_nan_around_a_label_map_is_background(tmp_path):
    image = brain_like((20, 24, 5)).astype(np.float32)
    labels = np.where(image > 300, 5, np.nan).astype(np.float32)
    paths = [
        save_nifti(tmp_path / name, data, sform=OBLIQUE) for name, data in (("scan.nii", image), ("mask.nii", labels))
    ]
    (tmp_path / "out").mkdir()
    cases = cut_pair(SourcePair("scan", "scan", *paths), tmp_path / "out", BY_LAST_AXIS)
    assert isinstance(cases, list), cases
    assert list(cases[0].labels) == [5]
