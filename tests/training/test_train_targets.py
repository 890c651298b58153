from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from samri.preprocessing import profile
from samri_training.train._targets import connected_parts, low_res_target

SAMRI = profile("samri")


def blob(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - 0.4 * height) / (0.3 * height)) ** 2 + ((columns - 0.6 * width) / (0.25 * width)) ** 2 <= 1
    return np.asarray(inside)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(512, 512), (256, 256), (300, 217), (150, 400), (61, 33)])
def test_an_area_target_agrees_with_counting_subpixels(shape: tuple[int, int]) -> None:
    mask = blob(*shape)
    target = low_res_target(mask, SAMRI, 1024, 256, "area")
    # 16 x 16 samples in each low-resolution pixel, taken back to the slice as inference maps it.
    longest = 1024 / max(shape)
    filled = [int(side * longest + 0.5) for side in shape]
    rows, columns = (
        ((np.arange(256 * 16) + 0.5) / 4) * (side / full) for side, full in zip(shape, filled, strict=True)
    )
    inside = (rows[:, None] < shape[0]) & (columns[None] < shape[1])
    picked = mask[np.minimum(rows.astype(int), shape[0] - 1)[:, None], np.minimum(columns.astype(int), shape[1] - 1)]
    share = (picked & inside).reshape(256, 16, 256, 16).mean((1, 3))
    assert np.abs(low_res_target(mask, SAMRI, 1024, 256, "coverage") - share).max() < 0.1
    unsure = np.abs(share - 0.5) < 0.04  # Sixteen samples don't tell so near the threshold.
    assert np.array_equal(target[~unsure], (share > 0.5)[~unsure])
    assert unsure.mean() < 0.005


def test_an_area_target_of_a_square_slice_agrees_with_pillows_box_filter() -> None:
    mask = blob(600, 600)
    # Pillow rounds to 256 levels.
    shrunk = np.asarray(Image.fromarray(mask.astype(np.float32), mode=None).resize((256, 256), Image.Resampling.BOX))
    target = low_res_target(mask, SAMRI, 1024, 256, "area")
    sure = np.abs(shrunk - 0.5) > 1e-6
    assert np.array_equal(target[sure], (shrunk > 0.5)[sure])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_coverage_target_is_the_mean_of_the_pixels_that_it_covers(times: int) -> None:
    mask = blob(256 * times, 256 * times)
    wanted = torch.nn.functional.avg_pool2d(torch.from_numpy(mask).float()[None], times)[0]
    target = low_res_target(mask, SAMRI, 1024, 256, "coverage")
    assert target.dtype == np.float32
    np.testing.assert_allclose(target, wanted, atol=1e-6)


def test_a_nearest_target_agrees_with_torchs_nearest_exact() -> None:
    mask = blob(600, 600)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(mask).float()[None, None], size=(256, 256), mode="nearest-exact"
    )[0, 0].numpy()
    assert np.array_equal(low_res_target(mask, SAMRI, 1024, 256, "nearest-exact"), wanted > 0)


@pytest.mark.parametrize("method", ["area", "coverage", "nearest-exact"])
def test_a_target_is_not_shifted(method: str) -> None:
    mask = np.zeros((1024, 1024), dtype=bool)
    mask[400:560, 300:700] = True
    rows, columns = np.nonzero(low_res_target(mask, SAMRI, 1024, 256, method))  # type: ignore[arg-type]
    assert (rows.mean() + 0.5) * 4 == pytest.approx(480)
    assert (columns.mean() + 0.5) * 4 == pytest.approx(500)


def test_padding_is_background_and_a_slice_that_is_all_mask_fills_the_rest() -> None:
    target = low_res_target(np.ones((100, 50), dtype=bool), SAMRI, 1024, 256, "area")
    assert target[:, :128].all()
    assert not target[:, 128:].any()


def test_medsam_targets_fill_the_square_whatever_the_aspect() -> None:
    assert low_res_target(np.ones((100, 50), dtype=bool), profile("medsam"), 1024, 256, "area").all()


def test_a_line_thinner_than_half_a_low_resolution_pixel_vanishes() -> None:
    mask = np.zeros((1024, 1024), dtype=bool)
    mask[:, 500:502] = True
    assert not low_res_target(mask, SAMRI, 1024, 256, "area").any()
    assert low_res_target(mask, SAMRI, 1024, 256, "coverage").max() == 0.5
    mask[:, 500:503] = True
    assert low_res_target(mask, SAMRI, 1024, 256, "area").any()


def test_an_empty_mask_gives_an_empty_target() -> None:
    assert not low_res_target(np.zeros((10, 10), dtype=bool), SAMRI, 128, 64, "area").any()


@pytest.mark.parametrize("smallest", [1, 4, 9])
def test_connected_parts_are_opencvs(smallest: int) -> None:
    rng = np.random.default_rng(smallest)
    coarse = rng.integers(0, 3, (20, 24))
    mask = np.kron(coarse, np.ones((2, 2), np.int64)).astype(np.uint16) * 7
    wanted = []
    for label in (7, 14):
        count, found = cv2.connectedComponents((mask == label).astype(np.uint8), connectivity=4)
        wanted += [found == number for number in range(1, count) if (found == number).sum() >= smallest]
    parts = connected_parts(mask, smallest)
    assert parts.max() == len(wanted) > 4
    assert {(parts == number).tobytes() for number in range(1, len(wanted) + 1)} == {part.tobytes() for part in wanted}


def test_no_part_is_left_of_an_empty_map_or_of_specks() -> None:
    mask = np.zeros((6, 7), np.uint16)
    assert not connected_parts(mask, 1).any()
    mask[2, 3] = mask[4, 4] = 3
    assert not connected_parts(mask, 2).any()
    assert connected_parts(mask, 0).max() == 2
