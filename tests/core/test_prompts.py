from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.transforms import ResizeLongestSide

from samri.errors import PromptError
from samri.preprocessing import profile
from samri.prompts import Prompt, prompts_from_arrays, to_batch, to_model_frame

coordinate = st.floats(0, 99, exclude_max=False)


def test_points_come_first_then_the_corners_of_the_box() -> None:
    coords, labels = to_batch([Prompt.of([[5, 6], [7, 8]], [1, 0], [1, 2, 3, 4])])
    assert coords.tolist() == [[[5, 6], [7, 8], [1, 2], [3, 4]]]
    assert labels.tolist() == [[1, 0, 2, 3]]


def test_without_a_box_there_is_one_padding_point() -> None:
    coords, labels = to_batch([Prompt.of([[5, 6]])])
    assert coords.tolist() == [[[5, 6], [0, 0]]]
    assert labels.tolist() == [[1, -1]]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6))
def test_shorter_prompts_are_filled_with_absent(shapes: list[tuple[int, bool]]) -> None:
    prompts = [
        Prompt.of(np.full((count, 2), 3.0), None, [1, 1, 4, 4] if boxed or not count else None)
        for count, boxed in shapes
    ]
    coords, labels = to_batch(prompts)
    lengths = [len(p.points) + (1 if p.box is None else 2) for p in prompts]
    assert coords.shape == (len(prompts), max(lengths), 2)
    assert coords.dtype == labels.dtype == np.float32
    for row, length in enumerate(lengths):
        assert (labels[row, :length] != -2).all()
        assert (labels[row, length:] == -2).all()


@given(x=coordinate, y=coordinate, height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_coordinates_scale_as_segment_anything_scales_them(x: float, y: float, height: int, width: int) -> None:
    # Of a side below half a pixel segment-anything leaves nothing; a picture needs one at least.
    rows, columns = (max(side, 1) for side in ResizeLongestSide.get_preprocess_shape(height, width, 1024))
    expected = np.array([[x * (columns / width), y * (rows / height)]])
    if min(height, width) * 2048 >= max(height, width):
        reference = ResizeLongestSide(1024).apply_coords(np.array([[x, y]]), (height, width))
        np.testing.assert_array_equal(reference, expected)
    ours = to_model_frame([[x, y]], (height, width), profile("samri"), 1024)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-30)


def test_medsam_scales_each_axis_to_the_square() -> None:
    ours = to_model_frame([[50, 50]], (100, 200), profile("medsam"), 1024)
    assert ours.tolist() == [[256.0, 512.0]]


@given(
    box=st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(0.5, 150), st.floats(0.5, 150)),
    height=st.integers(1, 100),
    width=st.integers(1, 100),
)
def test_a_box_is_clipped_to_the_image_or_refused(
    box: tuple[float, float, float, float], height: int, width: int
) -> None:
    x1, y1, w, h = box
    prompt = Prompt.of(box=[x1, y1, x1 + w, y1 + h])
    meets = x1 < width and y1 < height and x1 + w > 0 and y1 + h > 0
    if not meets:
        with pytest.raises(PromptError, match="outside"):
            prompt.validate((height, width))
        return
    valid, notes = prompt.validate((height, width))
    assert valid.box is not None
    left, top, right, bottom = valid.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    inside = x1 >= 0 and y1 >= 0 and x1 + w <= width and y1 + h <= height
    assert bool(notes) != inside


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ([5, 1, 2, 4], "reversed"),
        ([1, 5, 4, 2], "reversed"),
        ([1, 1, 1, 4], "no area"),
        ([30, 1, 40, 4], "outside"),
        ([-9, 1, 0, 4], "outside"),
    ],
)
def test_a_box_that_makes_no_sense_is_named(box: list[float], word: str) -> None:
    with pytest.raises(PromptError, match=word):
        Prompt.of(box=box).validate((20, 20))


@pytest.mark.parametrize("point", [(-0.1, 5), (5, -1), (20, 5), (5, 30)])
def test_a_point_outside_is_named(point: tuple[float, float]) -> None:
    with pytest.raises(PromptError, match="20 wide and 30 high"):
        Prompt.of([point]).validate((30, 20))


@pytest.mark.parametrize(
    "arguments",
    [
        {"box": [1, 2, np.nan, 4]},
        {"box": [1, 2, np.inf, 4]},
        {"box": [1, 2, 3]},
        {"box": ["a", 2, 3, 4]},
        {"points": [[1, 2, 3]]},
        {"points": [[1, np.nan]]},
        {"points": [[1, 2]], "labels": [2]},
        {"points": [[1, 2]], "labels": [1, 0]},
        {"points": [[1, 2], [3]]},
        {"points": np.zeros((0, 2))},
        {},
    ],
)
def test_what_is_no_prompt_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(PromptError):
        Prompt.of(**arguments)  # type: ignore[arg-type]


def test_a_prompt_made_without_the_shorthand_is_checked_too() -> None:
    with pytest.raises(PromptError):
        Prompt()
    with pytest.raises(PromptError, match="0"):
        Prompt(np.zeros((1, 2)), np.array([7]))
    with pytest.raises(PromptError, match="finite"):
        Prompt(box=np.array([np.nan, 0, 5, 5]))
    assert Prompt(box=[1, 2, 3, 4]).box.dtype == np.float64  # type: ignore[arg-type,union-attr]


def test_arrays_are_gathered_into_prompts() -> None:
    assert [p.to_json()["box"] for p in prompts_from_arrays([[1, 2, 3, 4], [5, 6, 7, 8]], None, None)] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
    ]
    assert len(prompts_from_arrays([1, 2, 3, 4], None, None)) == 1
    (one,) = prompts_from_arrays(None, [[1, 2], [3, 4]], [1, 0])
    assert one.to_json() == {"box": None, "points": [[1, 2], [3, 4]], "labels": [1, 0]}
    (both,) = prompts_from_arrays([1, 2, 3, 4], [[1, 2]], None)
    assert both.to_json() == {"box": [1, 2, 3, 4], "points": [[1, 2]], "labels": [1]}
    ragged = prompts_from_arrays(None, [[[1, 2]], np.array([[3, 4], [5, 6]])], [[1], [0, 1]])
    assert [len(p.points) for p in ragged] == [1, 2]
    assert len(prompts_from_arrays(None, np.zeros((3, 2, 2)), np.ones((3, 2)))) == 3


@pytest.mark.parametrize(
    ("boxes", "points", "labels"),
    [
        ([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2]], None),
        (None, None, [1]),
        (None, [[[1, 2]], [[3, 4]]], [[1]]),
        (None, 5, None),
    ],
)
def test_arrays_that_do_not_pair_are_refused(boxes: object, points: object, labels: object) -> None:
    with pytest.raises(PromptError):
        prompts_from_arrays(boxes, points, labels)  # type: ignore[arg-type]
