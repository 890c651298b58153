from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from samri.geometry import resized_shape
from samri.postprocessing import upscale_logits
from samri.preprocessing import profile
from tests.support.examples import examples

SHAPES = [(300, 200), (200, 300), (64, 64), (700, 1300), (1, 90), (233, 197)]


def segment_anything_masks(low_res: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """`Sam.postprocess_masks`, in float64: up to S x S, crop the padding, then to the original size."""
    filled = resized_shape(*shape, size)
    masks = interpolate(torch.from_numpy(low_res)[None].double(), (size, size), mode="bilinear", align_corners=False)
    masks = masks[..., : filled[0], : filled[1]]
    return interpolate(masks, shape, mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("low", "size"), [(64, 256), (256, 1024)])
def test_logits_are_segment_anythings(shape: tuple[int, int], low: int, size: int) -> None:
    low_res = np.random.default_rng(0).normal(0, 5, (2, low, low)).astype(np.float32)
    ours = upscale_logits(low_res, shape, profile("samri"), size)
    np.testing.assert_allclose(ours, segment_anything_masks(low_res, shape, size), atol=1e-4)


@settings(max_examples=examples(30))
@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_any_shape_matches_segment_anything(height: int, width: int) -> None:
    low_res = np.random.default_rng(height * 1000 + width).normal(0, 5, (1, 32, 32)).astype(np.float32)
    ours = upscale_logits(low_res, (height, width), profile("sam"), 128)
    np.testing.assert_allclose(ours, segment_anything_masks(low_res, (height, width), 128), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_medsam_thresholds_the_resized_probability(shape: tuple[int, int]) -> None:
    low_res = np.random.default_rng(1).normal(0, 4, (3, 64, 64)).astype(np.float32)
    probability = interpolate(torch.from_numpy(low_res).sigmoid()[None], shape, mode="bilinear", align_corners=False)
    expected = probability[0].numpy()
    logits = upscale_logits(low_res, shape, profile("medsam"), 256)
    clear = np.abs(expected - 0.5) > 1e-5
    assert np.array_equal((logits > 0)[clear], (expected > 0.5)[clear])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits.astype(np.float64))), expected, atol=1e-5)


def test_extreme_logits_do_not_overflow() -> None:
    low_res = np.full((1, 16, 16), 1e4, np.float32) * np.where(np.arange(16) < 8, 1, -1)
    for name in ("samri", "medsam"):
        assert np.isfinite(upscale_logits(low_res.astype(np.float32), (40, 30), profile(name), 64)).all()
