"""Pixels of a slice, voxel indices and millimeters, against nibabel's affines and the arrays themselves."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from nibabel.affines import apply_affine

from samri.errors import InputError, PromptError
from samri.frames import (
    box_of_corners,
    box_of_voxels,
    lps_to_ras,
    mm_to_voxel,
    nearest_index,
    pixel_to_voxel,
    voxel_to_mm,
    voxel_to_pixel,
)
from samri.geometry import PLANES, SliceView, axis_view, plane_view, whole_view
from tests.support.scans import OBLIQUE_FLIPPED, affine

GRID = (7, 9, 5)
ANGLE = st.floats(-3.2, 3.2)
SIGN = st.sampled_from([-1, 1])
AFFINES = st.builds(
    affine,
    st.tuples(ANGLE, ANGLE, ANGLE),
    st.tuples(*[st.floats(0.2, 6)] * 3),
    st.tuples(SIGN, SIGN, SIGN),
    st.tuples(*[st.floats(-200, 200)] * 3),
)
CUTS = st.sampled_from([*PLANES, 0, 1, 2])


def cut(matrix: np.ndarray, across: str | int, share: float) -> SliceView:
    """A slice somewhere along a plane or an axis."""
    if isinstance(across, int):
        return axis_view(GRID, across, int(share * (GRID[across] - 1)))
    last = GRID[plane_view(GRID, matrix, across, 0).axis] - 1
    return plane_view(GRID, matrix, across, int(share * last))


@given(matrix=AFFINES, across=CUTS, share=st.floats(0, 1), xy=st.tuples(st.floats(-3, 12), st.floats(-3, 12)))
def test_there_and_back_through_all_frames(
    matrix: np.ndarray, across: str | int, share: float, xy: tuple[float, float]
) -> None:
    view = cut(matrix, across, share)
    voxel = pixel_to_voxel(view, xy)
    mm = voxel_to_mm(matrix, voxel)
    np.testing.assert_allclose(mm, apply_affine(matrix, voxel), atol=1e-9)
    np.testing.assert_allclose(mm_to_voxel(matrix, mm), apply_affine(np.linalg.inv(matrix), mm), atol=1e-8)
    np.testing.assert_allclose(voxel_to_pixel(view, mm_to_voxel(matrix, mm)), xy, atol=1e-8)
    assert voxel[view.axis] == view.index


@given(matrix=AFFINES, across=CUTS, share=st.floats(0, 1))
def test_a_pixel_shows_the_voxel_that_it_stands_for(matrix: np.ndarray, across: str | int, share: float) -> None:
    view, volume = cut(matrix, across, share), np.arange(np.prod(GRID)).reshape(GRID)
    height, width = view.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    voxels = pixel_to_voxel(view, np.stack([x, y], axis=-1)).astype(int)
    np.testing.assert_array_equal(volume[tuple(np.moveaxis(voxels, -1, 0))], view.extract(volume))


@given(matrix=AFFINES, across=CUTS, share=st.floats(0, 1), data=st.data())
def test_a_box_covers_its_voxels_and_no_others(
    matrix: np.ndarray, across: str | int, share: float, data: st.DataObject
) -> None:
    view = cut(matrix, across, share)
    corners = np.array([[data.draw(st.integers(0, side - 1)) for side in GRID] for _ in range(2)])
    corners[:, view.axis] = view.index
    low, high = corners.min(axis=0), corners.max(axis=0)
    volume = np.zeros(GRID, bool)
    volume[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
    rows, columns = np.nonzero(view.extract(volume))
    box = box_of_voxels(view, corners)
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # The same box by the outer corners of its voxels, through space.
    mm = voxel_to_mm(matrix, [low - 0.5, high + 0.5])
    np.testing.assert_allclose(box_of_corners(view, mm_to_voxel(matrix, mm)), box, atol=1e-7)


def test_itk_counts_left_and_posterior() -> None:
    np.testing.assert_array_equal(lps_to_ras([[10, -20, 30]]), [[-10, 20, 30]])


def test_the_slice_follows_from_the_voxels() -> None:
    assert nearest_index(GRID, 2, [[0, 0, 1.5], [6, 8, 2.4]], "box") == 2
    assert nearest_index(GRID, 2, [[-0.5, 0, -0.5]], "point") == 0
    assert nearest_index(GRID, 2, [[0, 0, 4.5]], "point") == 4
    assert nearest_index((7, 9), None, [[6, 8, 0]], "point") == 0
    for outside in ([-0.6, 0, 0], [0, 8.6, 0], [0, 0, 5], [0, 0, np.nan]):
        with pytest.raises(PromptError, match="this point lies outside the scan, whose grid is 7 x 9 x 5 voxels"):
            nearest_index(GRID, 2, [outside], "this point")
    with pytest.raises(PromptError, match="from slice 1 to 3 of axis 2"):
        nearest_index(GRID, 2, [[0, 0, 1], [3, 3, 3]], "box")


def test_a_picture_has_its_array_for_voxels() -> None:
    view = whole_view((7, 9))
    np.testing.assert_array_equal(pixel_to_voxel(view, [3, 2]), [2, 3, 0])
    np.testing.assert_array_equal(voxel_to_pixel(view, [2, 3, 0]), [3, 2])


def test_a_singular_affine_has_no_voxels() -> None:
    with pytest.raises(InputError, match="singular"):
        mm_to_voxel(np.diag([1.0, 1.0, 0.0, 1.0]), [1, 2, 3])
    assert mm_to_voxel(OBLIQUE_FLIPPED, np.zeros((2, 4, 3))).shape == (2, 4, 3)
