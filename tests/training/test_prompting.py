from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from skimage.measure import regionprops

from samri.errors import PromptError
from samri_training.prompting import PROMPT_KINDS, sample_box, sample_point, sample_prompt

Mask = npt.NDArray[np.bool_]


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = np.zeros((height, width), dtype=np.bool_)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < draw(st.floats(0.05, 1))
    assume(mask.any())
    return mask


@given(masks())
def test_a_box_is_tight_at_pixel_edges(mask: Mask) -> None:
    top, left, bottom, right = regionprops(mask.astype(np.uint8))[0].bbox
    assert sample_box(mask, np.random.default_rng(0)).tolist() == [left, top, right, bottom]


@given(masks(), st.integers(0, 2**32))
def test_a_jittered_box_stays_in_the_image_and_keeps_its_area(mask: Mask, seed: int) -> None:
    height, width = mask.shape
    x1, y1, x2, y2 = sample_box(mask, np.random.default_rng(seed), jitter=True)
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height


@given(masks(), st.integers(0, 2**32))
def test_every_sampled_prompt_is_one_that_inference_accepts_as_it_is(mask: Mask, seed: int) -> None:
    for kind in PROMPT_KINDS:
        prompt = sample_prompt(mask, kind, np.random.default_rng(seed), jitter=True)
        checked, notes = prompt.validate((mask.shape[0], mask.shape[1]))
        assert notes == []
        np.testing.assert_array_equal(checked.points, prompt.points)
        assert (checked.box is None) == (prompt.box is None)
        if checked.box is not None:
            np.testing.assert_array_equal(checked.box, prompt.box)


@pytest.mark.parametrize("side", [128, 256, 640])
def test_jitter_moves_each_side_by_ten_pixels_of_a_256_frame(side: int) -> None:
    mask = np.zeros((side // 2, side), dtype=np.bool_)
    mask[side // 8 : 3 * side // 8, side // 4 : 3 * side // 4] = True
    rng = np.random.default_rng(1)
    moves = np.array([sample_box(mask, rng, jitter=True) for _ in range(2000)]) - sample_box(mask, rng)
    reach = 10 * side / 256
    assert np.abs(moves).max() <= reach
    np.testing.assert_allclose(np.abs(moves).max(axis=0), reach, rtol=0.01)
    np.testing.assert_allclose(moves.mean(axis=0), 0, atol=0.06 * reach)
    np.testing.assert_allclose(moves.std(axis=0), reach / np.sqrt(3), rtol=0.05)  # Of a uniform distribution.
    correlations = np.corrcoef(moves, rowvar=False) - np.eye(4)
    assert np.abs(correlations).max() < 0.1


def test_only_an_axis_longer_than_twenty_pixels_of_a_256_frame_is_jittered() -> None:
    mask = np.zeros((512, 512), dtype=np.bool_)
    mask[100:140, 200:241] = True  # 40 rows are 20 pixels of that frame, 41 columns are more.
    boxes = np.array([sample_box(mask, np.random.default_rng(seed), jitter=True) for seed in range(50)])
    assert (boxes[:, [1, 3]] == [100, 140]).all()
    assert (np.abs(boxes[:, [0, 2]] - [200, 241]) <= 20).all()
    assert len(np.unique(boxes[:, 0])) == 50


@given(masks(), st.integers(0, 2**32))
def test_a_point_lies_in_the_mask_in_the_middle_of_its_raster_order(mask: Mask, seed: int) -> None:
    x, y = sample_point(mask, np.random.default_rng(seed))
    pixels = [(column, row) for row, column in np.argwhere(mask)]
    rank = pixels.index((int(x), int(y)))
    # A pixel fills the ranks from r to r + 1: it must overlap the middle tenth.
    assert rank < 0.55 * len(pixels)
    assert rank + 1 > 0.45 * len(pixels)


def test_points_reach_the_whole_middle_tenth() -> None:
    mask = np.ones((20, 50), dtype=np.bool_)
    rng = np.random.default_rng(2)
    ranks = {int(y) * 50 + int(x) for x, y in (sample_point(mask, rng) for _ in range(3000))}
    assert ranks == set(range(450, 550))


def test_the_same_generator_gives_the_same_prompts() -> None:
    mask = np.random.default_rng(3).random((90, 70)) < 0.3
    first, second = (
        [sample_prompt(mask, kind, np.random.default_rng([7, 1, 5]), jitter=True).to_json() for kind in PROMPT_KINDS]
        for _ in range(2)
    )
    assert first == second
    other = [
        sample_prompt(mask, kind, np.random.default_rng([7, 2, 5]), jitter=True).to_json() for kind in PROMPT_KINDS
    ]
    assert first != other


def test_mixed_is_a_box_and_a_point_in_one_prompt() -> None:
    mask = np.zeros((30, 40), dtype=np.bool_)
    mask[4:20, 6:30] = True
    box, point, mixed = (sample_prompt(mask, kind, np.random.default_rng(0)) for kind in PROMPT_KINDS)
    assert (box.box is not None, len(box.points)) == (True, 0)
    assert (point.box is not None, len(point.points)) == (False, 1)
    assert (mixed.box is not None, len(mixed.points)) == (True, 1)
    assert point.labels.tolist() == mixed.labels.tolist() == [1]


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_an_empty_mask_is_refused(kind: str) -> None:
    with pytest.raises(PromptError, match="mask is empty"):
        sample_prompt(np.zeros((5, 5), dtype=np.bool_), kind, np.random.default_rng(0))  # type: ignore[arg-type]
