from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.distance import directed_hausdorff

from samri.errors import InputError
from samri_training.evaluate import Measures, measure, size_of

Mask = npt.NDArray[np.bool_]

# MONAI 1.6's own call of its own function.
monai_deprecation = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> Mask:
    offsets = [axis - middle for axis, middle in zip(np.ogrid[tuple(slice(n) for n in shape)], centre, strict=True)]
    inside: Mask = sum(offset**2 for offset in offsets) <= radius**2
    return inside


def blobs(seed: int) -> tuple[Mask, Mask, tuple[float, float]]:
    """Two related ragged masks, often touching the border, with an anisotropic spacing."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(side) for side in rng.integers(12, 120, 2))
    first = gaussian_filter(rng.normal(size=shape), rng.uniform(1, 8))
    second = first + 0.5 * gaussian_filter(rng.normal(size=shape), 3)
    masks = [field > np.quantile(field, rng.uniform(0.5, 0.98)) for field in (first, second)]
    row, column = rng.uniform(0.2, 3, 2)
    return masks[0], masks[1], (float(row), float(column))


@monai_deprecation
@pytest.mark.parametrize("seed", range(25))
def test_every_metric_is_monais(seed: int) -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou
    from monai.metrics.surface_distance import compute_average_surface_distance

    prediction, truth, spacing = blobs(seed)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    settings: dict[str, Any] = {"include_background": True, "spacing": spacing}
    ours = measure(prediction, truth, spacing)
    expected = [
        compute_dice(*pair),
        compute_iou(*pair),
        compute_hausdorff_distance(*pair, **settings),
        compute_hausdorff_distance(*pair, percentile=95, **settings),
        compute_average_surface_distance(*pair, symmetric=True, **settings),
    ]
    assert [ours.dice, ours.iou, ours.hd, ours.hd95, ours.msd] == pytest.approx([m.item() for m in expected], rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_a_distance_transform(seed: int) -> None:
    prediction, truth, spacing = blobs(100 + seed)
    outlines = []
    for mask in (prediction, truth):
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        outlines.append(mask & ~inner)
    to_truth = distance_transform_edt(~outlines[1], sampling=spacing)[outlines[0]]
    to_prediction = distance_transform_edt(~outlines[0], sampling=spacing)[outlines[1]]
    ours = measure(prediction, truth, spacing)
    assert ours.hd == pytest.approx(max(to_truth.max(), to_prediction.max()))
    assert ours.msd == pytest.approx(np.concatenate([to_truth, to_prediction]).mean())
    points = [np.argwhere(outline) * spacing for outline in outlines]
    assert ours.hd == pytest.approx(max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0]))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.7), (3.0, 0.5)])
def test_a_disc_shifted_by_whole_pixels_is_off_by_just_that(spacing: tuple[float, float]) -> None:
    truth = ball((80, 90), (40, 40), 15)
    for shift, length in (((0, 6), 6 * spacing[1]), ((6, 0), 6 * spacing[0])):
        ours = measure(np.roll(truth, shift, axis=(0, 1)), truth, spacing)
        # A shifted disc's furthest point lies on the axis of the shift.
        assert ours.hd == pytest.approx(length)
        assert 0 < ours.msd < ours.hd95 <= ours.hd


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 1.0)])
def test_spheres_shifted_along_an_axis_are_off_by_the_shift(spacing: tuple[float, float, float]) -> None:
    truth = ball((40, 40, 50), (20, 20, 20), 10)
    ours = measure(np.roll(truth, 4, axis=2), truth, spacing)
    assert ours.hd == pytest.approx(4 * spacing[2])
    # Two spheres of one radius, d apart, share a lens of (1 - 3d/4r + d^3/16r^3) of a sphere.
    assert ours.dice == pytest.approx(1 - 3 * 0.4 / 4 + 0.4**3 / 16, abs=0.02)


def test_rectangles_have_the_values_worked_out_by_hand() -> None:
    truth, prediction = np.zeros((20, 20), dtype=np.bool_), np.zeros((20, 20), dtype=np.bool_)
    truth[5:8, 5:8] = True  # 9 pixels, 8 of them outline.
    prediction[5:8, 5:10] = True  # 15 pixels, 12 of them outline: two columns too many.
    ours = measure(prediction, truth, (1.0, 2.0))
    assert ours.dice == pytest.approx(2 * 9 / (9 + 15))
    assert ours.iou == pytest.approx(9 / 15)
    # The added columns 8 and 9 are 2 and 4 mm away. Their outline: two pixels of column 8, three of column 9. Pixel
    # (6, 7) of the truth's outline isn't outline of the prediction: 1 mm to (5, 7).
    assert ours.hd == 4.0
    assert ours.msd == pytest.approx((2 * 2 + 3 * 4 + 1) / (12 + 8))


def test_equal_masks_are_perfect_even_at_the_border_of_the_image() -> None:
    for mask in (ball((30, 40), (0, 39), 12), np.ones((7, 9), dtype=np.bool_), ball((9, 9), (4, 4), 0)):
        assert measure(mask, mask, (0.5, 2.0)) == Measures(1.0, 1.0, 0.0, 0.0, 0.0, empty=False)


def test_the_border_of_the_image_is_outline() -> None:
    truth = np.zeros((10, 10), dtype=np.bool_)
    truth[:4] = True
    prediction = np.zeros((10, 10), dtype=np.bool_)
    prediction[:2] = True
    # Were row 0 no outline where the image ends, the distance from row 3 would be the only one left.
    ours = measure(prediction, truth, (1.0, 1.0))
    assert ours.hd == 2.0
    # The prediction is two rows, all outline. The truth: rows 0 and 3 whole, rows 1 and 2 at both ends.
    # From the prediction: row 1's inner eight pixels are 1 from row 0. From the truth: row 3 is 2, row 2's ends 1 away.
    assert ours.msd == pytest.approx((8 * 1 + 10 * 2 + 2 * 1) / (20 + 24))


def test_an_empty_prediction_is_the_worst_there_is_and_counted() -> None:
    truth = np.zeros((30, 40), dtype=np.bool_)
    truth[0, 0] = True
    worst = math.hypot(30 * 2.0, 40 * 0.5)
    empty = measure(np.zeros_like(truth), truth, (2.0, 0.5))
    assert empty == Measures(0.0, 0.0, worst, worst, worst, empty=True)
    opposite = np.zeros_like(truth)
    opposite[-1, -1] = True
    assert measure(opposite, truth, (2.0, 0.5)).hd < worst


def test_masks_that_do_not_meet_have_no_overlap_and_a_finite_distance() -> None:
    truth, prediction = np.zeros((30, 40), dtype=np.bool_), np.zeros((30, 40), dtype=np.bool_)
    truth[2, 3], prediction[5, 7] = True, True
    assert measure(prediction, truth, (1.0, 1.0)) == Measures(0.0, 0.0, 5.0, 5.0, 5.0, empty=False)


@pytest.mark.parametrize(
    ("pixels", "size"), [(10, "small"), (499, "small"), (500, "medium"), (3500, "medium"), (3501, "large")]
)
def test_sizes_are_shares_of_the_image(pixels: int, size: str) -> None:
    assert size_of(pixels, (200, 500)) == size


def test_what_cannot_be_compared_is_refused() -> None:
    mask = np.ones((4, 4), dtype=np.bool_)
    with pytest.raises(InputError, match="shape"):
        measure(mask, mask[:3], (1, 1))
    with pytest.raises(InputError, match="ground truth is empty"):
        measure(mask, ~mask, (1, 1))
    for spacing in ((1.0, 0.0), (1.0,), (math.nan, 1.0)):
        with pytest.raises(InputError, match="spacing"):
            measure(mask, mask, spacing)
