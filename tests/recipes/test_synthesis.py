"""Drawn slices: the same by seed, labels and picture that belong together, targets as asked for."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from samri.errors import InputError
from samri_tiny.synthesis import (
    LabelMap,
    contact_sheet,
    contrast_to_noise,
    draw_shapes,
    draw_slice,
    hold_out,
    pick_targets,
    read_label_maps,
    visible_parts,
)


@pytest.fixture(scope="module")
def head() -> LabelMap:
    """Balls in balls, numbered as FreeSurfer numbers white matter, cortex and what lies outside."""
    place = np.stack(np.indices((80, 90, 100)), axis=-1) - (40, 45, 50)
    radius = np.linalg.norm(place, axis=-1)
    labels = np.select([radius < 15, radius < 28, radius < 38], [1, 2, 3], 0).astype(np.uint8)
    return LabelMap("head", labels, np.array([0, 2, 3, 507]), np.ones(3))


def test_a_seed_draws_the_same_slice_again(head: LabelMap) -> None:
    first, second = (draw_slice(head, np.random.default_rng(5), (96, 128)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    other = draw_slice(head, np.random.default_rng(6), (96, 128))
    assert (first.image != other.image).any()


@pytest.mark.parametrize("seed", range(12))
def test_labels_have_names_and_levels_and_the_picture_its_shape(head: LabelMap, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for drawn in (draw_slice(head, rng, (70, 128)), draw_shapes(rng, (70, 128))):
        assert drawn.image.shape == drawn.labels.shape == (70, 128)
        assert drawn.image.dtype == np.uint8
        assert drawn.image.max() > drawn.image.min()
        assert drawn.labels.max() < len(drawn.codes) == len(drawn.levels)


@pytest.mark.parametrize("anatomy", [True, False])
def test_parts_are_all_of_the_connected_ones_that_can_be_seen(head: LabelMap, anatomy: bool) -> None:
    seen = unseen = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        drawn = draw_slice(head, rng, (128, 128)) if anatomy else draw_shapes(rng, (128, 128))
        expected = {}
        for label in set(drawn.labels.flat) - {0}:
            numbered, count = ndimage.label(drawn.labels == label)
            parts = [numbered == number for number in range(1, count + 1)]
            contrasts = {part.tobytes(): contrast_to_noise(drawn.image, part) for part in parts if part.sum() >= 30}
            expected |= {part: contrast for part, contrast in contrasts.items() if contrast >= 1}
            unseen += len([contrast for contrast in contrasts.values() if contrast < 1])
        assert {target.mask.tobytes(): target.contrast for target in visible_parts(drawn, 30)} == expected
        seen += len(expected)
    assert seen and unseen


@pytest.mark.parametrize("seed", range(8))
def test_targets_are_of_the_asked_size_and_made_of_what_is_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = draw_shapes(rng, (128, 128))
    targets = pick_targets(drawn, rng, 6, 40)
    assert len(targets) <= 6
    for target in targets:
        assert 40 <= target.mask.sum() <= 0.8 * target.mask.size
        assert drawn.labels[target.mask].any()


@pytest.mark.parametrize("seed", range(4))
def test_contrast_is_that_of_a_ring_of_three_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[5:20, 0:30] = True
    ring = ndimage.binary_dilation(mask, np.ones((7, 7))) & ~mask
    own, other = image[mask].astype(float), image[ring].astype(float)
    expected = abs(own.mean() - other.mean()) / np.sqrt((own.var() + other.var()) / 2)
    assert contrast_to_noise(image, mask) == pytest.approx(expected)


def test_label_maps_are_read_cropped_and_renumbered(tmp_path: Path) -> None:
    values = np.zeros((10, 12, 14), np.float32)
    values[2:5, 3:9, 4:6] = 17
    values[3, 4, 4] = 530
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 2, 3, 1])), file)
    read = read_label_maps([file])[0]
    np.testing.assert_array_equal(read.codes[read.labels], values[2:5, 3:9, 4:6])
    np.testing.assert_allclose(read.spacing, [1, 2, 3])


def test_an_image_is_not_taken_for_a_label_map(tmp_path: Path) -> None:
    file = tmp_path / "t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), np.eye(4)), file)
    with pytest.raises(InputError, match=r"t1\.nii\.gz: a label map holds whole numbers"):
        read_label_maps([file])
    with pytest.raises(InputError, match="no label maps"):
        read_label_maps([])


def test_every_fifth_map_is_held_out() -> None:
    files = [Path(f"{number:02d}.nii") for number in range(12)]
    used, kept = hold_out(files[::-1])
    assert kept == [files[4], files[9]]
    assert sorted([*used, *kept]) == files


def test_a_contact_sheet_holds_every_picture() -> None:
    sheet = contact_sheet([(np.full((20, 10), 200, np.uint8), np.eye(20, 10) > 0)] * 3, columns=2, tile=40)
    assert sheet.shape == (80, 80, 3)
    assert sheet[40:, :20].any()
    assert not sheet[40:, 40:].any()
