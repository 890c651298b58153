"""The overlay: legible, in true proportions, with what was asked and found in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samri.io import PALETTE, draw_overlay, side_by_side
from tests.support.examples import examples


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(color, np.uint8)).all(axis=-1).any())


def test_each_object_has_its_own_color_and_the_rest_stays_gray():
    labels = np.zeros((40, 60), np.uint8)
    labels[5:15, 5:15], labels[20:35, 30:50] = 1, 2
    picture = draw_overlay(np.full((40, 60), 7.0), labels)
    assert has_color(picture, PALETTE[0])
    assert has_color(picture, PALETTE[1])
    assert not has_color(picture, PALETTE[2])
    scale = picture.shape[0] // 40
    for label, (rows, columns) in {1: (10, 10), 2: (28, 40)}.items():
        inside = picture[rows * scale, columns * scale].astype(float)
        assert np.argmax(inside) == np.argmax(PALETTE[label - 1])
    outside = picture[: 3 * scale]
    assert (outside == outside[..., :1]).all()


@settings(max_examples=examples(40))
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    spacing=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    value=st.sampled_from((0, 3.5)),
)
def test_any_slice_is_shown_in_true_proportions_and_at_a_legible_size(shape, spacing, value):
    picture = draw_overlay(np.full(shape, value), np.zeros(shape, np.uint8), spacing=spacing)
    height, width = picture.shape[:2]
    assert picture.dtype == np.uint8
    assert 768 <= max(height, width) <= 4096
    proportion = (shape[0] * spacing[0]) / (shape[1] * spacing[1])
    # To the pixel along the shorter side; a side never vanishes.
    if proportion < 1:
        assert height == pytest.approx(max(1, width * proportion), abs=1.0)
    else:
        assert width == pytest.approx(max(1, height / proportion), abs=1.0)


def test_a_large_slice_keeps_its_size():
    assert draw_overlay(np.zeros((900, 1200)), np.zeros((900, 1200), np.uint8)).shape == (900, 1200, 3)


def test_boxes_are_drawn_where_they_are_even_around_the_whole_slice():
    labels = np.zeros((100, 80), np.uint8)
    picture = draw_overlay(np.zeros((100, 80)), labels, boxes=[(10, 20, 40, 60), (0, 0, 80, 100)])
    scale = picture.shape[0] / 100
    assert tuple(picture[round(20 * scale), round(25 * scale)]) == PALETTE[0]
    assert tuple(picture[round(40 * scale), round(40 * scale)]) == PALETTE[0]
    assert tuple(picture[-1, 400]) == PALETTE[1]
    assert tuple(picture[400, -1]) == PALETTE[1]


def test_positive_and_negative_points_differ_in_shape_not_in_color():
    labels = np.zeros((100, 100), np.uint8)
    picture = draw_overlay(
        np.full((100, 100, 3), 128, np.uint8), labels, points=[(20, 30), (70, 30)], point_labels=[1, 0]
    )
    scale = picture.shape[0] / 100
    y, step = round(30.5 * scale), 5

    def vertical(x: float) -> np.ndarray:
        return picture[y - step, round((x + 0.5) * scale)]

    assert tuple(vertical(20)) == (0, 0, 0)  # The plus's arm on white.
    assert tuple(vertical(70)) == (0, 0, 0)  # No arm: the black disc.
    assert tuple(picture[y - step, round(20.5 * scale) + step]) == (255, 255, 255)
    assert tuple(picture[y, round(70.5 * scale) + step]) == (255, 255, 255)


def test_8_bit_color_is_shown_as_it_is_and_other_depths_are_windowed():
    color = np.full((800, 800, 3), (10, 120, 200), np.uint8)
    labels = np.zeros((800, 800), np.uint8)
    np.testing.assert_array_equal(draw_overlay(color, labels), color)
    ramp = np.linspace(-5000, 12000, 800 * 800).reshape(800, 800)
    shown = draw_overlay(ramp, labels)
    assert shown.min() == 0
    assert shown.max() == 255
    assert (np.diff(shown[:, 400, 0].astype(int)) >= 0).all()
    deep = draw_overlay((color.astype(np.uint16) * 100), labels)
    assert deep.dtype == np.uint8


def test_candidates_stand_side_by_side():
    picture = np.full((768, 500, 3), 50, np.uint8)
    row = side_by_side([picture] * 3, ["1: score 0.91", "2", "3"])
    assert row.dtype == np.uint8
    assert row.shape[1] > 3 * 500
    assert (row[-768:, :500] == 50).all()


@pytest.mark.parametrize("spacing", [(1e-300, 1e300), (1.0, 1e200), (1e308, 1.0)])
def test_absurd_voxel_sizes_still_give_a_picture(spacing):
    picture = draw_overlay(np.ones((5, 6)), np.ones((5, 6), np.uint8), spacing=spacing)
    assert max(picture.shape) <= 4096


def test_the_largest_numbers_are_shown_like_any_others():
    image, labels = np.linspace(-1, 1, 30).reshape(5, 6), np.zeros((5, 6), np.uint8)
    np.testing.assert_array_equal(draw_overlay(image * 1.7e308, labels), draw_overlay(image, labels))
