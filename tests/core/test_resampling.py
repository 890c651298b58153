from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.transform import resize as skimage_resize

from samri.resampling import bilinear_matrix, pillow_bilinear, spline_matrix
from tests.support.examples import examples

sides = st.integers(1, 300)


@given(
    height=sides,
    width=sides,
    new_height=sides,
    new_width=sides,
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_bilinear_resize_is_pillows_bit_for_bit(
    height: int, width: int, new_height: int, new_width: int, channels: int, seed: int
) -> None:
    shape = (height, width, 3) if channels == 3 else (height, width)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    expected = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    assert np.array_equal(pillow_bilinear(image, new_height, new_width), np.asarray(expected))


@pytest.mark.parametrize("shape", [(2000, 1500), (1025, 1023), (3000, 10), (1024, 7)])
def test_large_and_thin_images_shrink_as_in_pillow(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for target in [(1024, 3), (100, 77)]:
        expected = Image.fromarray(image).resize(target[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(pillow_bilinear(image, *target), np.asarray(expected))


@given(old=sides, new=sides)
def test_the_bilinear_matrix_is_torchs_interpolate(old: int, new: int) -> None:
    line = np.random.default_rng(old).normal(size=old)
    # In float64: torch computes the positions of float32 images in float32, which is off by up to 1e-4.
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(line)[None, None, :, None], (new, 1), mode="bilinear", align_corners=False
    )[0, 0, :, 0]
    np.testing.assert_allclose(bilinear_matrix(old, new) @ line, expected.numpy(), atol=2e-5)


@settings(max_examples=examples(50))
@given(height=st.integers(2, 120), width=st.integers(2, 120), size=st.integers(2, 150))
def test_the_spline_matrix_is_scikit_images_antialiased_cubic_resize(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(height).random((height, width))
    expected = skimage_resize(image, (size, size), order=3, preserve_range=True, anti_aliasing=True, clip=False)
    ours = spline_matrix(height, size) @ image @ spline_matrix(width, size).T
    np.testing.assert_allclose(ours, expected, atol=1e-10)


def test_a_large_image_needs_no_large_matrix() -> None:
    assert spline_matrix(20_000, 64).shape == (64, 20_000)
