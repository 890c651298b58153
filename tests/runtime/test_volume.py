"""From prompts on a few slices to objects in a volume, with the model that comes with the package."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from samri import segment_volume
from samri.errors import InputError, PromptError
from samri.geometry import axis_view
from samri.io import Scan, read_scan
from samri.metrics import dice
from samri.prompts import Prompt
from samri_runtime import Predictor
from samri_runtime.run import main as samri_run
from samri_runtime.volume import SliceStack, VolumeSegmentation
from samri_runtime.volume._shapes import bounding_box, deepest_point, touching
from tests.support.examples import examples

Mask = npt.NDArray[np.bool_]
SHAPE = (56, 60, 36)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The shipped model, with a cache that all tests of this file share."""
    return Predictor("samri-tiny", "cpu", cache=tmp_path_factory.mktemp("cache"))


def ball(center: tuple[float, float, float], radii: tuple[float, float, float]) -> Mask:
    """An ellipsoid in `SHAPE`."""
    places = np.indices(SHAPE)
    inside = sum(((places[axis] - center[axis]) / radii[axis]) ** 2 for axis in range(3))
    return np.asarray(inside <= 1)


def tube() -> Mask:
    """A tube along the last axis that bends by 16 pixels."""
    rows, columns, slices = np.indices(SHAPE)
    middle = 20 + 16 * np.sin(np.pi * slices / SHAPE[2])
    return np.asarray(((rows - middle) ** 2 + (columns - 30) ** 2 <= 49) & (slices >= 4) & (slices < 32))


def picture(*objects: Mask) -> npt.NDArray[np.float32]:
    """Objects of falling brightness in noise."""
    noise = np.random.default_rng(3).normal(20, 4, SHAPE)
    for number, mask in enumerate(objects):
        noise[mask] += 110 - 45 * number
    return ndimage.gaussian_filter(noise, (0.6, 0.6, 0)).astype(np.float32)


def scan_of(voxels: npt.NDArray[np.float32], affine: npt.ArrayLike | None = None) -> Scan:
    """A scan without a file."""
    return Scan(Path("scan.nii"), "nifti", voxels, np.eye(4) if affine is None else np.asarray(affine, float))


def tight(mask: Mask, index: int) -> Prompt:
    """The tight box of a mask on a slice of the last axis."""
    return Prompt.of(box=bounding_box(mask[:, :, index]))


@pytest.mark.slow
def test_one_box_becomes_the_ellipsoid_and_ends_where_it_ends(predictor: Predictor) -> None:
    truth = ball((28, 30, 17), (13, 11, 12))
    result = segment_volume(scan_of(picture(truth)), predictor, keyframes={17: tight(truth, 17)})
    assert dice(result.label_map > 0, truth) > 0.95
    (followed,) = result.propagation.objects
    assert min(followed.slices) >= 4
    assert max(followed.slices) <= 30
    assert set(followed.ends) == {-1, 1}
    assert followed.slices[17].source == "prompt"
    assert followed.slices[17].agreement is None
    again = segment_volume(scan_of(picture(truth)), predictor, keyframes={17: tight(truth, 17)})
    assert again.propagation.encoded == 0  # All from the cache.
    np.testing.assert_array_equal(again.label_map, result.label_map)


def test_a_range_bounds_the_object_and_is_the_reason_of_its_ends(predictor: Predictor) -> None:
    truth = ball((28, 30, 17), (13, 11, 12))
    result = segment_volume(scan_of(picture(truth)), predictor, keyframes={17: tight(truth, 17)}, slices=(15, 20))
    assert np.flatnonzero(result.label_map.any(axis=(0, 1))).tolist() == [15, 16, 17, 18, 19, 20]
    assert result.propagation.objects[0].ends == {1: "the range ends here", -1: "the range ends here"}


@pytest.mark.slow
def test_boxes_between_keyframes_follow_a_bend(predictor: Predictor) -> None:
    truth = tube()
    boxes = {index: tight(truth, index) for index in (6, 18, 30)}
    result = segment_volume(scan_of(picture(truth)), predictor, keyframes=boxes, slices=(4, 31))
    assert dice(result.label_map > 0, truth) > 0.93
    sources = {number: found.source for number, found in result.propagation.objects[0].slices.items()}
    assert {number for number, source in sources.items() if source == "prompt"} == {6, 18, 30}
    assert {number for number, source in sources.items() if source == "interpolated"} == {*range(7, 18), *range(19, 30)}


def test_two_objects_that_touch_share_no_voxel(predictor: Predictor) -> None:
    left, right = ball((18, 30, 17), (9, 10, 9)), ball((37, 30, 17), (10, 10, 9))
    right &= ~left
    result = segment_volume(
        scan_of(picture(left, right)),
        predictor,
        keyframes=[{17: tight(left, 17)}, {15: tight(right, 15)}],
        names=["left", "right"],
        slices=(9, 25),
    )
    assert dice(result.label_map == 1, left) > 0.9
    assert dice(result.label_map == 2, right) > 0.9
    assert result.volumes_mm3 is None  # The scan has no file, so nothing says what its voxels measure.


@pytest.mark.slow
def test_the_same_scan_in_another_orientation_gives_the_same_mask_in_space(predictor: Predictor) -> None:
    truth = ball((28, 30, 17), (13, 11, 8))
    voxels = picture(truth)
    affine = np.diag([0.9, 0.8, 3.0, 1.0])
    affine[:3, 3] = (-20, 5, 9)
    turned = nib.Nifti1Image(voxels, affine).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    results = [
        segment_volume(
            scan_of(np.asarray(image.dataobj), image.affine),
            predictor,
            keyframes={17: Prompt.of(box=(14, 18, 43, 42))},
            plane="axial",
        )
        for image in (nib.Nifti1Image(voxels, affine), turned)
    ]
    there = nib.as_closest_canonical(nib.Nifti1Image(results[1].label_map, turned.affine))
    np.testing.assert_allclose(there.affine, affine)
    np.testing.assert_array_equal(np.asarray(there.dataobj), results[0].label_map)
    assert results[0].label_map.any()


@pytest.mark.parametrize(
    ("keyframes", "names", "slices", "words"),
    [
        ([], (), None, "no object"),
        ([{}], (), None, "has no prompt"),
        ([{3: Prompt.of(box=(1, 1, 9, 9))}], (), (5, 9), "misses slice 3"),
        ([{3: Prompt.of(box=(1, 1, 9, 9))}], (), (9, 5), "no range of slices"),
        ([{3: Prompt.of(box=(1, 1, 9, 9))}] * 2, ("a", "a"), None, "the same"),
        ([{3: Prompt.of(points=[(70, 3)])}], (), None, "outside the image"),
        ([{99: Prompt.of(box=(1, 1, 9, 9))}], (), None, "out of range"),
    ],
)
def test_what_makes_no_sense_is_refused(
    predictor: Predictor,
    keyframes: list[dict[int, Prompt]],
    names: tuple[str, ...],
    slices: tuple[int, int] | None,
    words: str,
) -> None:
    scan = scan_of(picture(ball((28, 30, 17), (9, 9, 9))))
    with pytest.raises((PromptError, InputError), match=words):
        segment_volume(scan, predictor, keyframes=keyframes, names=names, slices=slices)


def test_a_scan_of_one_slice_has_no_volume() -> None:
    scan = scan_of(np.zeros((20, 20, 1), np.float32))
    with pytest.raises(InputError, match="one slice"):
        SliceStack(scan, axis_view(scan.grid, 2, 0))


@pytest.mark.slow
def test_the_command_writes_the_volume_and_replaces_only_its_own(tmp_path: Path) -> None:
    truth = ball((28, 30, 17), (13, 11, 6))
    affine = np.diag([0.5, 0.5, 6.0, 1.0])
    nib.save(nib.Nifti1Image(picture(truth), affine), tmp_path / "scan.nii.gz")
    box = bounding_box(truth[:, :, 17])
    options = ["--model", "samri-tiny", "--input", tmp_path / "scan.nii.gz", "--provider", "cpu", "--no-cache"]
    options += ["--slice", 17, "--box", *box, "--propagate", "--label", "ball"]

    def run(*more: object) -> tuple[int, str]:
        done = CliRunner().invoke(samri_run, [str(word) for word in (*options, "--output", tmp_path / "out", *more)])
        return done.exit_code, done.output

    assert run()[0] == 0
    names = ["montage.png", "seg_.json", "seg_.nii.gz", "seg_dseg.tsv", "slices.csv"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"scan_{name}" for name in names]
    mask = nib.load(tmp_path / "out" / "scan_seg_.nii.gz")
    np.testing.assert_array_equal(mask.affine, affine)
    labels = np.asarray(mask.dataobj)
    assert dice(labels > 0, truth) > 0.9
    rows = list(csv.DictReader((tmp_path / "out" / "scan_slices.csv").read_text().splitlines()))
    assert [int(row["slice"]) for row in rows] == np.flatnonzero(labels.any(axis=(0, 1))).tolist()
    for row in rows:
        pixels = int(np.count_nonzero(labels[:, :, int(row["slice"])]))
        assert (int(row["pixels"]), float(row["area_mm2"])) == (pixels, pixels / 4)
    (one,) = json.loads((tmp_path / "out" / "scan_seg_.json").read_text())["volume"]["objects"]
    assert (one["name"], one["voxels"], one["volume_mm3"]) == ("ball", int(labels.sum()), 1.5 * int(labels.sum()))
    code, output = run("--range", 16, 18)  # The same axis: its own results are replaced.
    assert code == 0, output
    assert "slices 16 to 18" in output
    code, output = run("--range", 16, 18, "--axis", 0)
    assert code == 1
    assert "--overwrite" in output
    for wrong in (["--range", 3, 5], ["--multimask"], ["--keyframe", 17, 1, 1, 9, 9]):
        assert run(*wrong)[0] in (1, 2)


def test_options_of_a_volume_need_propagate(tmp_path: Path) -> None:
    for more in (["--range", "1", "2"], ["--keyframe", "1", "2", "3", "4", "5"]):
        done = CliRunner().invoke(samri_run, ["-i", "scan.nii", "-o", str(tmp_path), "--box", *"1199", *more])
        assert done.exit_code == 2
        assert "--propagate" in done.output


def test_results_in_python_are_those_of_the_command(tmp_path: Path, predictor: Predictor) -> None:
    truth = ball((28, 30, 17), (13, 11, 6))
    nib.save(nib.Nifti1Image(picture(truth), np.eye(4)), tmp_path / "scan.nii")
    result: VolumeSegmentation = segment_volume(
        read_scan(tmp_path / "scan.nii"), predictor, keyframes={17: tight(truth, 17)}, slices=(16, 18)
    )
    files = result.save(tmp_path / "out", png=False)
    assert sorted(file.name for file in files) == [
        "scan_seg_.json",
        "scan_seg_.nii.gz",
        "scan_seg_dseg.tsv",
        "scan_slices.csv",
    ]
    assert result.volumes_mm3 is not None
    assert result.volumes_mm3.tolist() == [float((result.label_map == 1).sum())]


@settings(max_examples=examples(60))
@given(st.integers(0, 2**32 - 1))
def test_the_deepest_point_is_nearly_as_deep_as_any(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(30, 40)), rng.uniform(1, 4)) > 0.02
    if not mask.any():
        return
    x, y = deepest_point(mask).astype(int)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    assert mask[y, x]
    assert depth[y, x] >= 0.85 * depth.max() - 1


@settings(max_examples=examples(60))
@given(st.integers(0, 2**32 - 1))
def test_pieces_that_touch_the_neighbor_are_kept_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(24, 31)), 1.5) > 0.05
    neighbor = np.zeros_like(mask)
    neighbor[8:14, 10:16] = True
    pieces, _ = ndimage.label(mask)
    reached = np.unique(pieces[mask & neighbor])
    expected = np.isin(pieces, reached) if len(reached) else mask
    np.testing.assert_array_equal(touching(mask, neighbor), expected)
