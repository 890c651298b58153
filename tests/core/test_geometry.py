from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide

from samri.errors import InputError
from samri.geometry import PLANES, Plane, SliceView, axis_view, nearest_ras_axes, plane_view, resized_shape, whole_view

sides = st.integers(1, 4000)
grids = st.tuples(*[st.integers(1, 7)] * 3)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any signed permutation of the axes, tilted by up to 40 degrees, with unequal voxel sizes and an offset."""
    permutation = draw(st.permutations(range(3)))
    linear = np.zeros((3, 3))
    for voxel, world in enumerate(permutation):
        linear[world, voxel] = draw(st.sampled_from([-1, 1])) * draw(st.floats(0.3, 6.0))
    axis = np.add(draw(st.tuples(*[st.floats(-1, 1)] * 3)), (1e-3, 0, 0))
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.deg2rad(draw(st.floats(-40, 40)))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = rotation @ linear
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@given(height=sides, width=sides, size=st.sampled_from([128, 256, 1024]))
def test_the_resized_shape_is_segment_anythings(height: int, width: int, size: int) -> None:
    expected = ResizeLongestSide.get_preprocess_shape(height, width, size)
    assert resized_shape(height, width, size) == tuple(max(1, side) for side in expected)


@given(grid=grids, affine=affines(), plane=st.sampled_from(PLANES), data=st.data())
def test_a_plane_shows_what_nibabel_shows_after_reorienting_to_ras(
    grid: tuple[int, int, int], affine: np.ndarray, plane: Plane, data: st.DataObject
) -> None:
    volume = np.arange(np.prod(grid)).reshape(grid)
    ras = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume.astype(np.int32), affine))
    canonical = np.asarray(ras.dataobj)
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    index = data.draw(st.integers(0, canonical.shape[across] - 1))
    # Rows from superior or anterior downwards; columns from patient's right, or from anterior, to the right.
    expected = np.take(canonical, index, axis=across).T[::-1, ::-1]

    view = plane_view(grid, affine, plane, index)

    assert np.array_equal(view.extract(volume), expected)
    assert view.shape == expected.shape


@given(grid=grids, affine=affines(), plane=st.sampled_from(PLANES), data=st.data())
def test_inserting_what_was_extracted_restores_that_slice_and_nothing_else(
    grid: tuple[int, int, int], affine: np.ndarray, plane: Plane, data: st.DataObject
) -> None:
    volume = np.random.default_rng(0).integers(1, 255, grid).astype(np.uint8)
    axis = data.draw(st.integers(0, 2))
    views = [axis_view(grid, axis, data.draw(st.integers(0, grid[axis] - 1)))]
    across = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    voxel_axis = nearest_ras_axes(affine)[0][across]
    views.append(plane_view(grid, affine, plane, data.draw(st.integers(0, grid[voxel_axis] - 1))))
    for view in views:
        restored = view.insert(view.extract(volume))
        kept = np.zeros(grid, bool)
        kept[tuple(view.index if a == view.axis else slice(None) for a in range(3))] = True
        assert np.array_equal(restored, np.where(kept, volume, 0))


@given(affine=affines())
def test_the_nearest_axes_are_nibabels(affine: np.ndarray) -> None:
    axes, signs = nearest_ras_axes(affine)
    orientation = nibabel.io_orientation(affine)
    for world in range(3):
        assert tuple(orientation[axes[world]]) == (world, signs[world])


def test_a_right_hemisphere_voxel_is_shown_on_the_left_of_an_axial_slice() -> None:
    volume = np.zeros((10, 10, 4), np.uint8)
    volume[8, 2, 1] = 1  # RAS: far right, near the back.
    row, column = np.argwhere(plane_view((10, 10, 4), np.eye(4), "axial", 1).extract(volume))[0]
    assert (row, column) == (7, 1)


def test_an_array_slice_keeps_the_remaining_axes_in_order() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(axis_view(volume.shape, 2, 3).extract(volume), volume[:, :, 3])
    assert np.array_equal(axis_view(volume.shape, 0, 1).extract(volume), volume[1])


@pytest.mark.parametrize("shape", [(5, 6), (1, 5, 6), (5, 1, 6), (5, 6, 1)])
def test_a_single_slice_is_shown_as_its_array(shape: tuple[int, ...]) -> None:
    array = np.arange(30).reshape(shape)
    view = whole_view(shape)
    assert np.array_equal(view.extract(array), array.reshape(5, 6))
    assert view.insert(array.reshape(5, 6)).shape == shape


def test_colors_stay_on_the_last_axis() -> None:
    assert SliceView((4, 5)).extract(np.zeros((4, 5, 3))).shape == (4, 5, 3)


def test_a_volume_without_a_slice_is_refused() -> None:
    with pytest.raises(InputError, match="--slice"):
        whole_view((4, 5, 6))


@pytest.mark.parametrize("index", [-1, 6])
def test_a_slice_out_of_range_is_refused_with_the_range(index: int) -> None:
    with pytest.raises(InputError, match="0 to 5"):
        axis_view((4, 5, 6), 2, index)
    with pytest.raises(InputError, match="0 to 5"):
        plane_view((4, 5, 6), np.eye(4), "axial", index)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1, 1, 0, 1]), np.ones((4, 4))])
def test_an_affine_without_three_directions_has_no_planes(affine: np.ndarray) -> None:
    with pytest.raises(InputError, match="--axis"):
        plane_view((4, 5, 6), affine, "axial", 0)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="fit"):
        axis_view((4, 5, 6), 2, 0).insert(np.zeros((5, 4), np.uint8))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e200, 1e300])
def test_the_nearest_axes_do_not_depend_on_the_unit_of_length(scale: float) -> None:
    turned = np.array([[0.1, -2.0, 0.0, 5], [0.2, 0.1, -3.0, 6], [1.5, 0.0, 0.1, 7], [0, 0, 0, 1]])
    scaled = turned * [[scale], [scale], [scale], [1]]
    assert nearest_ras_axes(scaled) == nearest_ras_axes(turned) == ((1, 2, 0), (-1, -1, 1))


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e200])
def test_a_singular_affine_of_any_size_has_no_planes(scale: float) -> None:
    with pytest.raises(InputError, match="planes are unknown"):
        nearest_ras_axes(np.ones((4, 4)) * scale)
