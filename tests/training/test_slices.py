"""Slices found by name and read from files, with nibabel as the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest

from samri.errors import InputError
from samri_training.slices import find_slices

AFFINE = np.diag([0.7, 1.3, 4.0, 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, units: str = "mm") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def save_pair(folder: Path, name: str, mask: np.ndarray | None = None, shape=(6, 9, 1), affine=AFFINE) -> None:
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    labels = np.zeros(shape, np.uint8) if mask is None else mask
    if mask is None:
        labels.flat[3:20] = 2
    save(folder / f"{name}.nii.gz", image, affine)
    save(folder / f"{name.replace('_img', '_seg')}.nii.gz", labels, affine)


def test_pairs_are_matched_by_name_whatever_their_order(tmp_path):
    # Sorted independently, `a_img_10` would meet `a_seg_1`: the published demo's fault.
    for name in ("a_img_1", "a_img_10", "a_img_2", "b_img_"):
        save_pair(tmp_path / "training", name)
    save_pair(tmp_path / "testing", "c_img_000")
    pairs = find_slices(tmp_path)
    assert [pair.name for pair in pairs] == [
        "testing/c_img_000",
        "training/a_img_1",
        "training/a_img_10",
        "training/a_img_2",
        "training/b_img_",
    ]
    assert [pair.case for pair in pairs] == ["c", "a", "a", "a", "b"]
    assert [pair.split for pair in pairs] == ["testing", *["training"] * 4]
    for pair in pairs:
        assert pair.mask.name == pair.image.name.replace("_img", "_seg")
    assert [pair.name for pair in find_slices(tmp_path / "testing")] == ["c_img_000"]


def test_equal_cases_of_two_datasets_stay_apart(tmp_path):
    save_pair(tmp_path / "dataset_A" / "training", "p1_img_0")
    save_pair(tmp_path / "dataset_B" / "testing", "p1_img_0")
    pairs = find_slices(tmp_path)
    assert [pair.case for pair in pairs] == ["dataset_A/p1", "dataset_B/p1"]
    assert len({pair.name for pair in pairs}) == 2


@pytest.mark.parametrize(("shape", "spacing"), [((6, 9, 1), (0.7, 1.3)), ((1, 6, 9), (1.3, 4.0)), ((6, 9), (0.7, 1.3))])
def test_a_slice_is_read_as_its_array_with_its_spacing(tmp_path, shape, spacing):
    save_pair(tmp_path, "a_img_0", shape=shape)
    read = find_slices(tmp_path)[0].read()
    np.testing.assert_array_equal(read.image, np.arange(54).reshape(6, 9))
    assert read.image.dtype == np.int16
    assert read.mask.dtype == np.uint16
    assert read.mask.sum() == 2 * 17
    assert read.spacing == pytest.approx(spacing, rel=1e-6)
    assert read.intensity_range is None


def test_spacing_is_in_mm_whatever_the_file_counts_in(tmp_path):
    labels = np.ones((6, 9, 1), np.uint8)
    for name in ("a_img_0", "a_seg_0"):
        save(tmp_path / f"{name}.nii.gz", labels, np.diag([50.0, 100.0, 500.0, 1.0]), units="micron")
    assert find_slices(tmp_path)[0].read().spacing == pytest.approx((0.05, 0.1))


def test_pictures_are_read_too(tmp_path):
    gray = np.arange(54, dtype=np.uint8).reshape(6, 9)
    cv2.imwrite(str(tmp_path / "a_img_0.png"), np.stack([gray] * 3, axis=2))
    cv2.imwrite(str(tmp_path / "a_seg_0.png"), (gray > 20).astype(np.uint8) * 255)
    read = find_slices(tmp_path)[0].read()
    np.testing.assert_array_equal(read.image, gray)
    assert set(np.unique(read.mask)) == {0, 255}
    assert read.spacing == (1.0, 1.0)


def test_what_the_sidecar_says_of_a_case_comes_with_its_slices(tmp_path):
    save_pair(tmp_path, "a_img_0")
    cases = {"a": {"patient": "p7", "intensity_range": [3, 90.5], "sources": []}}
    content = {"format": "samri-slices", "format_version": 1, "cases": cases}
    (tmp_path / "slices.json").write_text(json.dumps(content))
    pair = find_slices(tmp_path)[0]
    assert (pair.patient, pair.intensity_range) == ("p7", (3, 90.5))
    assert pair.read().intensity_range == (3, 90.5)

    (tmp_path / "slices.json").write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(InputError, match=r"slices\.json was written by another version"):
        find_slices(tmp_path)
    for broken in ("{", "[]", json.dumps({**content, "cases": {"a": {}}}), json.dumps({**content, "cases": {"a": 1}})):
        (tmp_path / "slices.json").write_text(broken)
        with pytest.raises(InputError, match=r"slices\.json is damaged .*prepare the dataset again"):
            find_slices(tmp_path)


@pytest.mark.parametrize("missing", ["a_img_1", "a_seg_1"])
def test_a_file_without_its_partner_is_named(tmp_path, missing):
    save_pair(tmp_path, "a_img_0")
    save_pair(tmp_path, "a_img_1")
    (tmp_path / f"{missing}.nii.gz").unlink()
    left = ({"a_img_1", "a_seg_1"} - {missing}).pop()
    with pytest.raises(InputError, match=rf"{left}\.nii\.gz has no partner"):
        find_slices(tmp_path)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        find_slices(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no slices"):
        find_slices(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path):
    save_pair(tmp_path, "a_img_0")
    save(tmp_path / "a_img_0.nii", np.ones((6, 9, 1), np.int16))
    with pytest.raises(InputError, match="have the same name but for the suffix"):
        find_slices(tmp_path)


def one(value: float, dtype: type) -> np.ndarray:
    labels = np.zeros((6, 9, 1), dtype)
    labels[2, 3] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (one(1.0000001, np.float32), r"holds 1\.0000001, which is not a label"),
        (one(0.5, np.float64), r"holds 0\.5, which is not a label"),
        (one(-1, np.int16), "holds -1, which is not a label"),
        (one(-1, np.float32), "holds -1, which is not a label"),
        (one(65536, np.int32), "holds 65536, which is not a label"),
        (one(0, np.uint8), "is empty"),
        (np.ones((6, 9), np.uint8), r"has shape \(6, 9\), its image .* \(6, 9, 1\)"),
        (np.ones((9, 6, 1), np.uint8), r"has shape \(9, 6, 1\), its image .* \(6, 9, 1\)"),
    ],
)
def test_what_is_no_label_map_of_the_image_is_refused_by_name(tmp_path, labels, words):
    save_pair(tmp_path, "a_img_0", labels)
    with pytest.raises(InputError, match=rf"a_seg_0\.nii\.gz {words}") as caught:
        find_slices(tmp_path)[0].read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_whole_labels_are_read_from_any_dtype(tmp_path, dtype):
    save_pair(tmp_path, "a_img_0", one(1023, dtype))
    assert find_slices(tmp_path)[0].read().mask.max() == 1023


@pytest.mark.parametrize("part", [(0, 3), (1, 1), (0, 1)], ids=["shifted", "stretched", "sheared"])
def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, part):
    save_pair(tmp_path, "a_img_0", one(1, np.uint8))
    moved = AFFINE.copy()
    moved[part] += 0.2
    save(tmp_path / "a_seg_0.nii.gz", one(1, np.uint8), moved)
    with pytest.raises(InputError, match=r"a_seg_0\.nii\.gz is not aligned with its image .*a_img_0\.nii\.gz"):
        find_slices(tmp_path)[0].read()


def test_an_affine_that_was_rounded_is_no_reason_to_refuse(tmp_path):
    save_pair(tmp_path, "a_img_0", one(1, np.uint8))
    save(tmp_path / "a_seg_0.nii.gz", one(1, np.uint8), AFFINE + 1e-4)
    assert find_slices(tmp_path)[0].read().mask.sum() == 1


def test_a_jpeg_is_no_label_map(tmp_path):
    cv2.imwrite(str(tmp_path / "a_img_0.jpg"), np.full((8, 8), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "a_seg_0.jpg"), np.full((8, 8), 1, np.uint8))
    with pytest.raises(InputError, match=r"a_seg_0\.jpg: JPEG doesn't keep labels"):
        find_slices(tmp_path)[0].read()
