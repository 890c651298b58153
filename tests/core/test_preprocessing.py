from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide
from skimage.transform import resize as skimage_resize

from samri.errors import BundleError, InputError
from samri.preprocessing import PROFILE_NAMES, Profile, ProfileName, percentile_range, preprocess, profile, to_uint8

SHAPES = [(300, 200), (200, 300), (256, 256), (1300, 900), (17, 1100), (1, 1), (233, 197)]
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def segment_anything_input(image: np.ndarray, size: int) -> np.ndarray:
    """What `SamPredictor.set_image` feeds its encoder: (H, W, 3) uint8 to (1, 3, S, S)."""
    resized = torch.from_numpy(ResizeLongestSide(size).apply_image(image)).permute(2, 0, 1)[None].float()
    normal = (resized - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    padding = (0, size - normal.shape[3], 0, size - normal.shape[2])
    return torch.nn.functional.pad(normal, padding).numpy()


def medsam_input(gray: np.ndarray, size: int) -> np.ndarray:
    """MedSAM's inference script, from its uint8 image on."""
    color = np.repeat(gray[:, :, None], 3, axis=2)
    resized = skimage_resize(color, (size, size), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    low, high = float(resized.min()), float(resized.max())
    return ((resized - low) / max(high - low, 1e-8)).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [128, 1024])
def test_the_sam_profile_gives_sam_predictors_input_bit_for_bit(shape: tuple[int, int], size: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(preprocess(image, profile("sam"), size), segment_anything_input(image, size))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_samri_profile_stretches_the_slice_to_uint8_first(shape: tuple[int, int]) -> None:
    scan = np.random.default_rng(2).normal(300, 90, shape).astype(np.float32)
    spread = max(float(np.ptp(scan)), 1e-30)
    gray = np.rint((scan.astype(np.float64) - scan.min()) / spread * 255).astype(np.uint8)
    expected = segment_anything_input(np.repeat(gray[:, :, None], 3, axis=2), 256)
    assert np.array_equal(preprocess(scan, profile("samri"), 256), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, bool])
@pytest.mark.parametrize("name", ["samri", "medsam"])
def test_a_constant_image_is_zeros_not_an_error(dtype: Any, name: ProfileName) -> None:
    assert not to_uint8(np.ones((5, 4), dtype), profile(name)).any()
    assert np.isfinite(preprocess(np.ones((5, 4), dtype), profile(name), 64)).all()


@pytest.mark.parametrize("shape", [(80, 60), (300, 200), (97, 301)])
def test_the_medsam_profile_agrees_with_scikit_image(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    volume = rng.gamma(2.0, 150.0, (*shape, 5)) * (rng.random((*shape, 5)) > 0.3)
    nonzero = volume[volume != 0]
    low, high = np.percentile(nonzero, 0.5), np.percentile(nonzero, 99.5)
    clipped = np.clip(volume, low, high)
    gray = ((clipped - clipped.min()) / (clipped.max() - clipped.min()) * 255.0).astype(np.uint8)
    gray[volume == 0] = 0

    ours = preprocess(volume[:, :, 2], profile("medsam"), 256, intensity_range=percentile_range(volume))

    # Both truncate a spline to whole gray levels: a rounding error in the 15th digit may tip a pixel by one level.
    difference = np.abs(ours - medsam_input(gray[:, :, 2], 256)) * 255
    assert difference.max() <= 1.01
    assert (difference > 0.5).mean() < 1e-3


def test_a_given_range_maps_to_black_and_white_and_clips_beyond() -> None:
    values = to_uint8(np.array([[-50.0, 0.0, 50.0, 100.0, 900.0]]), profile("samri"), (0.0, 100.0))
    assert values.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_uint8_with_its_own_full_range_passes_unchanged(name: ProfileName) -> None:
    image = np.random.default_rng(4).integers(3, 200, (20, 30), dtype=np.uint8)
    assert np.array_equal(to_uint8(image, profile(name), (0, 255)), image)


@given(
    low=st.integers(-(2**31), 2**31 - 2),
    spread=st.integers(1, 2**31),
    dtype=st.sampled_from([np.int64, np.float64, np.float32]),
)
def test_stretching_uses_the_whole_range_whatever_the_units(low: int, spread: int, dtype: Any) -> None:
    scan = np.linspace(low, low + spread, 12).astype(dtype).reshape(3, 4)
    gray = to_uint8(scan, profile("samri"))
    if np.ptp(scan) > 0:
        assert (gray.min(), gray.max()) == (0, 255)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((0, 5)), "no pixels"),
        (np.zeros((5, 5, 4)), "alpha"),
        (np.zeros(5), "one slice"),
        (np.zeros((2, 5, 5, 3)), "one slice"),
        (np.zeros((5, 5), complex), "complex"),
        (np.full((5, 5), np.nan), "25 NaN"),
        (np.array([[0.0, np.inf]]), "infinite"),
        (np.array([["a", "b"]]), "real"),
    ],
)
def test_what_is_no_image_is_named(image: np.ndarray, word: str) -> None:
    for name in PROFILE_NAMES:
        with pytest.raises(InputError, match=word):
            preprocess(image, profile(name), 64)


def test_a_volume_with_nan_has_no_percentiles() -> None:
    with pytest.raises(InputError, match="NaN"):
        percentile_range(np.array([1.0, np.nan]))


def test_the_input_is_not_modified() -> None:
    image = np.random.default_rng(5).normal(size=(9, 9))
    before = image.copy()
    for name in PROFILE_NAMES:
        preprocess(image, profile(name), 32)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_a_profile_survives_json(name: ProfileName) -> None:
    assert Profile.from_json(json.loads(json.dumps(profile(name).to_json())), "here") == profile(name)


def test_a_profile_with_other_numbers_is_refused_rather_than_ignored() -> None:
    values = profile("samri").to_json() | {"mean": [0.0, 0.0, 0.0]}
    with pytest.raises(BundleError, match="mean"):
        Profile.from_json(values, "manifest.json")
    with pytest.raises(BundleError, match="unknown"):
        Profile.from_json({"name": "other"}, "manifest.json")


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_the_largest_numbers_are_stretched_like_any_others(name: ProfileName) -> None:
    pixels = np.linspace(-1, 1, 60).reshape(6, 10)
    expected = preprocess(pixels, profile(name), 16)
    assert expected.max() > expected.min()
    np.testing.assert_array_equal(preprocess(pixels * 1.7e308, profile(name), 16), expected)


def test_percentiles_of_the_largest_numbers_are_finite() -> None:
    voxels = np.linspace(-1, 1, 200)
    np.testing.assert_allclose(
        percentile_range(voxels * 1.7e308), np.array(percentile_range(voxels)) * 1.7e308, rtol=1e-12
    )
