"""The parts of the demo model's measurement, against independent computations."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import binary_dilation
from skimage.draw import ellipse as drawn_ellipse
from skimage.filters import threshold_otsu

from samri.errors import InputError
from samri_tiny.evaluate import (
    TestSlice,
    cases_of,
    contrast_to_noise,
    corrective_point,
    digest,
    filled_ellipse,
    otsu_in_box,
    otsu_threshold,
    read_gipl,
)
from samri_tiny.evaluate._cases import jittered, middle

Mask = npt.NDArray[np.bool_]


def rectangle(shape: tuple[int, int], rows: slice, columns: slice) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[rows, columns] = True
    return mask


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> Mask:
    rows, columns = np.indices(shape)
    inside: Mask = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return inside


@pytest.mark.parametrize("box", [(10, 20, 51, 39), (0, 0, 64, 48), (5.3, 7.1, 30.8, 44.4), (60.5, 1, 64, 47.25)])
def test_the_ellipse_is_the_one_that_scikit_image_draws(box: tuple[float, ...]) -> None:
    x1, y1, x2, y2 = box
    expected = np.zeros((48, 64), dtype=np.bool_)
    # Its pixels' centers are whole numbers, and it leaves out the line itself.
    rows, columns = drawn_ellipse(
        (y1 + y2 - 1) / 2, (x1 + x2 - 1) / 2, (y2 - y1) / 2 + 1e-9, (x2 - x1) / 2 + 1e-9, shape=expected.shape
    )
    expected[rows, columns] = True
    np.testing.assert_array_equal(filled_ellipse(box, (48, 64)), expected)


def test_an_ellipse_has_the_area_of_its_formula_and_touches_its_box() -> None:
    mask = filled_ellipse((20, 40, 180, 100), (128, 200))
    assert mask.sum() == pytest.approx(np.pi * 80 * 30, rel=0.01)
    assert np.flatnonzero(mask.any(axis=0))[[0, -1]].tolist() == [20, 179]
    assert np.flatnonzero(mask.any(axis=1))[[0, -1]].tolist() == [40, 99]


@pytest.mark.parametrize("seed", range(5))
def test_otsus_threshold_is_scikit_images_for_whole_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(60, 15, 400), rng.normal(150, 30, 200)]).clip(0, 255).astype(np.uint8)
    # Whole numbers have a bin each there, so no bin's width gets in the way.
    assert otsu_threshold(values.astype(np.float64)) == threshold_otsu(values.reshape(20, 30))


def test_otsu_takes_the_side_of_the_center_and_stays_in_the_box() -> None:
    dark = disc((64, 64), 30, 34, 9)
    image = np.where(dark, 20, 200).astype(np.uint8)
    np.testing.assert_array_equal(otsu_in_box(image, (24, 20, 44, 41)), dark)
    np.testing.assert_array_equal(otsu_in_box(255 - image, (24, 20, 44, 41)), dark)
    beside = otsu_in_box(image, (35, 20, 64, 41))  # Its center isn't on the disc: the other side is meant.
    np.testing.assert_array_equal(beside, ~dark & rectangle((64, 64), slice(20, 41), slice(35, 64)))


def test_otsu_of_a_flat_box_is_all_of_it() -> None:
    found = otsu_in_box(np.full((20, 20), 7), (3, 4, 10, 12))
    np.testing.assert_array_equal(found, rectangle((20, 20), slice(4, 12), slice(3, 10)))


@pytest.mark.parametrize("box", [(9.6, 9.7, 10.2, 10.1), (-1, -1, 0.2, 0.3), (19.8, 19.9, 25, 22)])
def test_a_box_that_holds_no_pixels_center_still_gives_an_answer(box: tuple[float, ...]) -> None:
    assert otsu_in_box(np.arange(400).reshape(20, 20), box).any()


def test_contrast_to_noise_is_its_formula_on_a_ring_found_by_dilation() -> None:
    rng = np.random.default_rng(3)
    structure = disc((256, 256), 100, 90, 20) | rectangle((256, 256), slice(0, 30), slice(100, 140))
    image = rng.normal(100, 12, structure.shape) + 9 * structure
    around = disc((7, 7), 3, 3, 3)
    ring = binary_dilation(structure, around) & ~structure
    inside, outside = image[structure], image[ring]
    expected = abs(inside.mean() - outside.mean()) / np.sqrt((inside.std() ** 2 + outside.std() ** 2) / 2)
    assert contrast_to_noise(image, structure) == pytest.approx(expected, rel=1e-9)
    assert 0.5 < expected < 1


def test_the_ring_grows_with_the_slice() -> None:
    structure = disc((512, 384), 256, 192, 60)
    image = np.where(disc((512, 384), 256, 192, 66.8), 10.0, 90.0)  # The same within 6 pixels of it.
    assert contrast_to_noise(image, structure) == 0
    assert contrast_to_noise(np.where(structure, 10.0, 90.0), structure) == np.inf
    assert contrast_to_noise(image, np.ones_like(structure)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_middle_is_the_pixel_furthest_from_outside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = disc((30, 40), *rng.uniform(0, 30, 2), rng.uniform(3, 12)) & (rng.random((30, 40)) < 0.95)  # type: ignore[call-arg]
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    depths = {(x, y): np.linalg.norm(outside - (y, x), axis=1).min() for y, x in np.argwhere(mask)}
    x, y = middle(mask)
    assert depths[x, y] == pytest.approx(max(depths.values()))


def test_the_correction_is_in_the_middle_of_the_largest_error() -> None:
    truth = rectangle((40, 40), slice(10, 30), slice(10, 20))
    missing = truth & ~rectangle((40, 40), slice(10, 17), slice(10, 20))  # 70 pixels are missing.
    point, label = corrective_point(missing | rectangle((40, 40), slice(0, 5), slice(0, 5)), truth) or (None, None)
    assert label == 1
    assert point is not None
    assert point[1] == 13
    assert 13 <= point[0] <= 16
    too_much = truth | rectangle((40, 40), slice(30, 39), slice(10, 19))
    point, label = corrective_point(too_much, truth) or (None, None)
    assert label == 0
    assert point is not None
    assert point.tolist() == [14, 34]
    assert corrective_point(truth, truth) is None
    nothing = corrective_point(np.zeros_like(truth), truth)
    assert nothing is not None
    assert nothing[1] == 1


def test_boxes_move_by_two_pixels_of_256_and_keep_an_area() -> None:
    rng = np.random.default_rng(0)
    box = np.array([100.0, 200.0, 180.0, 300.0])
    moved = np.array([jittered(box, (512, 400), rng) - box for _ in range(2000)])
    assert np.abs(moved).max() <= 4
    assert np.abs(moved).max(axis=0).min() > 3.9
    assert np.abs(moved.mean(axis=0)).max() < 0.2
    thin = np.array([5.0, 3.0, 6.0, 50.0])
    for _ in range(200):
        x1, y1, x2, y2 = jittered(thin, (64, 64), rng)
        assert x2 - x1 >= 0.5
        assert y2 - y1 > 45
    assert (jittered(np.array([0.0, 0, 64, 64]), (64, 64), rng) >= 0).all()


def some_slice(name: str = "one") -> TestSlice:
    image = np.random.default_rng(1).normal(100, 5, (128, 128))
    pieces = disc(image.shape, 30, 30, 10) | disc(image.shape, 80, 80, 14) | rectangle(image.shape, slice(5), slice(5))
    faint = rectangle(image.shape, slice(100, 120), slice(10, 40))
    small = rectangle(image.shape, slice(0, 5), slice(60, 65))  # 25 pixels, 100 of a slice of 256: not above it.
    image += 40 * pieces
    return TestSlice(name, "somebody", image, {"pieces": pieces, "faint": faint, "small": small})


def test_cases_are_the_connected_parts_above_a_hundred_pixels_and_the_whole() -> None:
    cases = cases_of(some_slice(), seed=0)
    found = [(case.structure, case.part, case.parts, case.connected, case.whole, case.visible) for case in cases]
    assert found == [
        ("pieces", 0, 3, False, True, True),
        ("pieces", 1, 3, True, False, True),
        ("pieces", 2, 3, True, False, True),
        ("faint", 1, 1, True, True, False),
    ]
    first = cases[1]
    np.testing.assert_array_equal(first.truth, disc((128, 128), 80, 80, 14))
    assert first.tight_box.tolist() == [66, 66, 95, 95]
    assert first.point.tolist() == [80, 80]
    assert first.area == 4 * first.pixels == 4 * first.truth.sum()
    assert 0 < np.abs(first.box - first.tight_box).max() <= 1


def test_cases_depend_on_the_seed_the_slice_and_the_structure_alone() -> None:
    again, other = cases_of(some_slice(), seed=0), cases_of(some_slice(), seed=1)
    for case, same, different in zip(cases_of(some_slice(), seed=0), again, other, strict=True):
        assert case.box.tolist() == same.box.tolist() != different.box.tolist()
    boxes = {tuple(case.box - case.tight_box) for case in [*again, *cases_of(some_slice("two"), seed=0)]}
    assert len(boxes) == 2 * len(again)


def test_a_digest_tells_other_cases_apart() -> None:
    cases = cases_of(some_slice(), seed=0)
    assert digest(cases) == digest(cases_of(some_slice(), seed=5))  # Boxes are moved anew; the cases are the same.
    assert digest(cases[:-1]) != digest(cases)
    assert len(digest(cases)) == 12


def gipl(voxels: npt.NDArray[np.int16]) -> bytes:
    """As the format is described: big-endian, 256 bytes of header, the first axis fastest."""
    header = struct.pack(">4HH4f", *voxels.shape, 1, 15, 0.5, 1.5, 2.5, 0.0)
    header += b"made by a test".ljust(80, b"\0") + bytes(252 - len(header) - 80) + struct.pack(">I", 0xEFFFE9B0)
    return header + voxels.astype(">i2").tobytes(order="F")


def test_a_gipl_image_is_read_in_its_own_axes(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-500, 500, (3, 4, 5)).astype(np.int16)
    (tmp_path / "a.gipl").write_bytes(gipl(voxels))
    (tmp_path / "a.gipl.gz").write_bytes(gzip.compress(gipl(voxels)))
    for name in ("a.gipl", "a.gipl.gz"):
        read, spacing = read_gipl(tmp_path / name)
        np.testing.assert_array_equal(read, voxels)
        assert read.dtype == np.int16
        assert spacing == (0.5, 1.5, 2.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"short", "is not a GIPL image"),
        (bytes(300), "is not a GIPL image"),
        (gipl(np.zeros((2, 2, 2), np.int16))[:-1], "is damaged"),
        (gipl(np.zeros((2, 2, 2), np.int16)).replace(struct.pack(">H", 15), struct.pack(">H", 99), 1), "type 99"),
    ],
)
def test_what_is_no_gipl_image_is_refused_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "scan.gipl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_gipl(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "scan.gipl.gz"
    for content in (b"no archive", gzip.compress(gipl(np.zeros((2, 2, 2), np.int16)))[:-12]):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*scan\.gipl\.gz"):
            read_gipl(file)
