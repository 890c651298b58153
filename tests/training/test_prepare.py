"""`samri-prepare` from files to files, with nibabel as the oracle for where a pixel lies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from samri.preprocessing import percentile_range
from samri_training.prepare import Cut, main, prepare, prepare_arrays
from samri_training.prepare._cut import LabelTally
from samri_training.slices import find_slices
from tests.support.examples import examples
from tests.support.files import contents

OBLIQUE = np.array([[0.7, 0.1, -0.3, -80], [-0.1, 0.9, 0.2, 12], [0.2, -0.1, 3.9, 40], [0, 0, 0, 1.0]])


def save(path: Path, data: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine, dtype=data.dtype), path)
    return path


def volume(shape=(12, 14, 6), seed=0) -> np.ndarray:
    """Every voxel has its own value."""
    return np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype(np.int16)


def block(shape=(12, 14, 6), label=1, dtype=np.uint8) -> np.ndarray:
    labels = np.zeros(shape, dtype)
    labels[2:8, 3:9, 1:5] = label
    return labels


def dataset(folder: Path, patients: int = 4) -> Path:
    for n in range(patients):
        save(folder / f"p{n}_img_.nii.gz", volume(seed=n))
        save(folder / f"p{n}_seg_.nii.gz", block())
    return folder


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(tmp_path: Path, *arguments: object) -> str:
    """The one line that a refused run prints; nothing is written or left behind."""
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("-o", tmp_path / "out", *arguments)
    assert (code, out) == (1, "")
    assert sorted(tmp_path.rglob("*")) == before
    assert err.startswith("samri-prepare: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.slow
@settings(max_examples=examples(25))
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    zooms=st.tuples(*[st.floats(0.25, 8)] * 3),
    flips=st.tuples(*[st.sampled_from((1, -1))] * 3),
    how=st.sampled_from([Cut(axis=0), Cut(axis=1), Cut(axis=2), Cut("axial"), Cut("coronal"), Cut("sagittal")]),
)
def test_every_pixel_lies_where_its_voxel_does(tmp_path_factory, angles, zooms, flips, how):
    matrix = np.eye(4)
    for axis, angle in enumerate(angles):
        turn = np.eye(4)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    matrix[:3, :3] *= np.array(zooms) * np.array(flips)
    matrix[:3, 3] = 10, -20, 30
    data = volume((4, 5, 3))
    labels = (data % 7).astype(np.uint8)
    folder = tmp_path_factory.mktemp("grid")
    how = Cut(how.plane, how.axis, min_pixels=1)
    prepare_arrays(folder / "out", {"training": {"a": (data, labels)}}, how, affine=matrix)

    place_of = {int(value): apply_affine(matrix, index) for index, value in np.ndenumerate(data)}
    label_of = {int(value): int(labels[index]) for index, value in np.ndenumerate(data)}
    seen: list[int] = []
    for pair in find_slices(folder / "out"):
        image, mask = nib.load(pair.image), nib.load(pair.mask)
        np.testing.assert_array_equal(image.affine, mask.affine)
        assert image.header.get_xyzt_units()[0] == "unknown"
        for index, value in np.ndenumerate(np.asarray(image.dataobj)):
            np.testing.assert_allclose(apply_affine(image.affine, index), place_of[int(value)], atol=2e-4)
            assert int(np.asarray(mask.dataobj)[index]) == label_of[int(value)]
            seen.append(int(value))
        read = pair.read()
        assert read.image.shape == image.shape[:2]
        expected = np.sqrt((image.affine[:3, :2] ** 2).sum(axis=0))
        assert read.spacing == pytest.approx(tuple(expected), rel=1e-5)
    assert sorted(seen) == sorted(place_of)


@pytest.mark.parametrize(
    ("plane", "down", "right", "first"),
    [
        ("axial", (0, -1, 0), (-1, 0, 0), "inferior"),
        ("coronal", (0, 0, -1), (-1, 0, 0), "posterior"),
        ("sagittal", (0, 0, -1), (0, -1, 0), "left"),
    ],
)
def test_planes_are_shown_as_radiologists_do(tmp_path, plane, down, right, first):
    save(tmp_path / "in/a_img_.nii.gz", volume(), OBLIQUE[[2, 0, 1, 3]])
    save(tmp_path / "in/a_seg_.nii.gz", np.ones((12, 14, 6), np.uint8), OBLIQUE[[2, 0, 1, 3]])
    prepare(tmp_path / "in", tmp_path / "out", Cut(plane), shares=(1, 0, 0))
    slices = [nib.load(pair.image) for pair in find_slices(tmp_path / "out")]
    unit = slices[0].affine[:3, :3] / np.sqrt((slices[0].affine[:3, :3] ** 2).sum(axis=0))
    assert unit[:, 0] @ down > 0.9
    assert unit[:, 1] @ right > 0.9
    axis = {"left": 0, "posterior": 1, "inferior": 2}[first]
    assert slices[0].affine[axis, 3] < slices[-1].affine[axis, 3]


def test_slices_are_the_arrays_of_the_axis(tmp_path):
    data, labels = volume(), block(label=3)
    prepare_arrays(tmp_path / "out", {"testing": {"a": (data, labels)}})
    pairs = find_slices(tmp_path / "out")
    assert [pair.name for pair in pairs] == [f"testing/a_img_{k:03d}" for k in range(1, 5)]
    for k, pair in enumerate(pairs, start=1):
        read = pair.read()
        np.testing.assert_array_equal(read.image, data[:, :, k])
        np.testing.assert_array_equal(read.mask, labels[:, :, k])
        assert read.image.dtype == np.int16
        assert nib.load(pair.mask).get_data_dtype() == np.uint8
        assert read.intensity_range == percentile_range(data)


def test_small_labels_are_dropped_slice_by_slice_and_counted(tmp_path):
    labels = np.zeros((20, 20, 5), np.uint16)
    labels[0, :10, 0] = 1  # 10 pixels: kept.
    labels[1, :9, 0] = 2  # 9 pixels: dropped, the slice stays.
    labels[1, :9, 1] = 2  # Dropped, and the slice with it.
    labels[:, :, 2] = 300  # 400 pixels.
    save(tmp_path / "in/a_img_.nii.gz", volume((20, 20, 5)))
    save(tmp_path / "in/a_seg_.nii.gz", labels)
    code, out, _ = run("-i", tmp_path / "in", "-o", tmp_path / "out", "--split", 1, 0, 0, "--json")
    assert code == 0
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    total = report["splits"]["training"]
    assert (total["cases"], total["patients"], total["slices"]) == (1, 1, 2)
    assert (total["slices_unmarked"], total["slices_thinned"]) == (2, 1)
    assert total["shapes"] == {"20 x 20": 2}
    assert total["labels"] == {
        "1": {"slices": 1, "pixels": 10, "small": 0, "medium": 1, "large": 0, "dropped": 0},
        "2": {"slices": 0, "pixels": 0, "small": 0, "medium": 0, "large": 0, "dropped": 2},
        "300": {"slices": 1, "pixels": 400, "small": 0, "medium": 0, "large": 1, "dropped": 0},
    }
    masks = [nib.load(pair.mask) for pair in find_slices(tmp_path / "out")]
    assert [set(np.unique(np.asarray(mask.dataobj))) for mask in masks] == [{0, 1}, {300}]
    assert [mask.get_data_dtype() for mask in masks] == [np.uint8, np.uint16]


@pytest.mark.parametrize(
    ("pixels", "size"), [(49, "small"), (50, "medium"), (350, "medium"), (351, "large"), (10000, "large")]
)
def test_size_bins_have_exact_bounds(pixels, size):
    tally = LabelTally.of(pixels, 10_000, min_pixels=10)
    assert {name for name in ("small", "medium", "large") if getattr(tally, name)} == {size}


def test_patients_are_divided_by_seed_and_stay_whole(tmp_path):
    dataset(tmp_path / "in", 6)
    for out in ("one", "two"):
        assert run("-i", tmp_path / "in", "-o", tmp_path / out, "--split", 4, 1, 1, "--seed", 3)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    pairs = find_slices(tmp_path / "one")
    splits = {case: {pair.split for pair in pairs if pair.case == case} for case in (f"p{n}" for n in range(6))}
    assert all(len(split) == 1 for split in splits.values())
    assert sorted(next(iter(split)) for split in splits.values()) == ["testing", *["training"] * 4, "validation"]


def test_worker_processes_make_the_same_bytes(tmp_path):
    dataset(tmp_path / "in")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "one")[0] == 0
    assert run("-i", tmp_path / "in", "-o", tmp_path / "two", "--num-workers", 2)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_splits_folder_of_the_input_is_followed(tmp_path):
    dataset(tmp_path / "in")
    (tmp_path / "in/splits").mkdir()
    (tmp_path / "in/splits/train.txt").write_text("p3\np0\n")
    (tmp_path / "in/splits/test.txt").write_text("p1\n")
    code, out, err = run("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0
    assert "note: patients are divided as" in err
    assert "p2_img_.nii.gz: its patient p2 is in no file of" in out
    found = {pair.case: pair.split for pair in find_slices(tmp_path / "out")}
    assert found == {"p0": "training", "p3": "training", "p1": "testing"}


def test_what_it_made_goes_in_again_unchanged(tmp_path):
    dataset(tmp_path / "in")
    run("-i", tmp_path / "in", "-o", tmp_path / "one", "--plane", "coronal")
    run("-i", tmp_path / "one", "-o", tmp_path / "two")
    first, second = find_slices(tmp_path / "one"), find_slices(tmp_path / "two")
    assert [(p.name, p.patient, p.intensity_range) for p in first] == [
        (p.name, p.patient, p.intensity_range) for p in second
    ]
    for one, two in zip(first, second, strict=True):
        assert (one.image.read_bytes(), one.mask.read_bytes()) == (two.image.read_bytes(), two.mask.read_bytes())


def test_frames_of_a_4d_image_are_chosen_or_become_cases(tmp_path):
    data, labels = volume((12, 14, 6, 3)), np.stack([block(label=n) for n in (1, 2, 3)], axis=3)
    save(tmp_path / "in/a_img_.nii.gz", data)
    save(tmp_path / "in/a_seg_.nii.gz", labels)
    source = ("-i", tmp_path / "in", "--split", 1, 0, 0)
    assert "a_img_.nii.gz has 3 frames: choose one with --frame 0 to 2, or --frame all" in refused(tmp_path, *source)
    assert run(*source, "-o", tmp_path / "one", "--frame", 1)[0] == 0
    read = find_slices(tmp_path / "one")[0].read()
    np.testing.assert_array_equal(read.image, data[:, :, 1, 1])
    assert read.mask.max() == 2
    assert run(*source, "-o", tmp_path / "all", "--frame", "all")[0] == 0
    pairs = find_slices(tmp_path / "all")
    assert {(pair.case, pair.patient) for pair in pairs} == {(f"a_frame00{n}", "a") for n in range(3)}
    assert {(pair.case, int(pair.read().mask.max())) for pair in pairs} == {(f"a_frame00{n}", n + 1) for n in range(3)}

    save(tmp_path / "in/a_seg_.nii.gz", labels[..., :2])
    assert "a_seg_.nii.gz has 2 frames, its image" in refused(tmp_path, *source, "--frame", 0)
    save(tmp_path / "in/a_seg_.nii.gz", labels[..., 0])
    assert run(*source, "-o", tmp_path / "shared", "--frame", 2)[0] == 0
    np.testing.assert_array_equal(find_slices(tmp_path / "shared")[0].read().image, data[:, :, 1, 2])


def test_scaled_scanner_values_keep_their_values(tmp_path):
    image = nib.Nifti1Image(volume(), OBLIQUE)
    image.header.set_slope_inter(0.25, -7)
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in/a_img_.nii.gz")
    save(tmp_path / "in/a_seg_.nii.gz", block())
    prepare(tmp_path / "in", tmp_path / "out", shares=(1, 0, 0))
    read = find_slices(tmp_path / "out")[0].read()
    np.testing.assert_array_equal(read.image, nib.load(tmp_path / "in/a_img_.nii.gz").get_fdata()[:, :, 1])
    assert read.image.dtype == np.float32


def test_nothing_of_the_source_header_but_its_geometry_reaches_a_slice(tmp_path):
    image = nib.Nifti1Image(volume(), OBLIQUE)
    image.header["descrip"] = b"DOE^JANE"
    (tmp_path / "in").mkdir()
    nib.save(image, tmp_path / "in/a_img_.nii.gz")
    save(tmp_path / "in/a_seg_.nii.gz", block())
    prepare(tmp_path / "in", tmp_path / "out", shares=(1, 0, 0))
    for pair in find_slices(tmp_path / "out"):
        header = nib.load(pair.image).header
        assert header["descrip"] == b""
        assert header.get_sform(coded=True)[1] == 2


def labels_with(value: float, dtype: type) -> np.ndarray:
    labels = block(dtype=dtype)
    labels[5, 5, 3] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "affine", "words"),
    [
        (labels_with(1.0000001, np.float32), OBLIQUE, "holds 1.0000001, which is not a label"),
        (labels_with(-3, np.int16), OBLIQUE, "holds -3, which is not a label"),
        (block((12, 14, 7)), OBLIQUE, "has shape (12, 14, 7), its image"),
        (block(), OBLIQUE + 0.5, "is not aligned with its image"),
        (np.zeros((12, 14, 6), np.uint8), OBLIQUE, "is empty: every voxel is 0"),
    ],
    ids=["float", "negative", "shape", "affine", "empty"],
)
def test_a_mask_that_cannot_be_used_stops_the_run_or_is_left_out(tmp_path, labels, affine, words):
    dataset(tmp_path / "in")
    save(tmp_path / "in/p2_seg_.nii.gz", labels, affine)
    message = refused(tmp_path, "-i", tmp_path / "in")
    assert f"{tmp_path}/in/p2_seg_.nii.gz" in message
    assert words in message
    code, out, _ = run("-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-bad", "--json")
    assert code == 0
    (left_out,) = json.loads(out)["left_out"]
    assert left_out["what"] == "p2_seg_.nii.gz"
    assert words in left_out["why"]
    assert {pair.case for pair in find_slices(tmp_path / "out")} == {"p0", "p1", "p3"}


def test_no_report_names_the_folders_above(tmp_path):
    source = tmp_path / "Anna Smith" / "in"
    dataset(source)
    save(source / "p2_seg_.nii.gz", np.zeros((12, 14, 6), np.uint8))
    (source / "p3_img_.nii.gz").rename(source / "p4_img_.nii.gz")
    splits = tmp_path / "Anna Smith" / "splits"
    splits.mkdir()
    (splits / "train.txt").write_text("p0\n")
    options = ("--splits", splits, "--skip-bad")
    code, out, _ = run("-i", source, "-o", tmp_path / "out", *options)
    assert code == 0
    assert all(name in out for name in ("p1_img_.nii.gz", "p3_seg_.nii.gz", "p4_img_.nii.gz"))
    records = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".txt")]
    assert {"report.json", "report.txt", "slices.json"} <= {path.name for path in records}
    for text in (out, *(path.read_text("utf-8") for path in records)):
        assert "Smith" not in text
        assert str(tmp_path) not in text
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["source"] == "in"
    assert report["settings"]["division"] == {"by": "files", "files": "splits"}


def test_all_bad_pairs_are_named_at_once(tmp_path):
    dataset(tmp_path / "in")
    save(tmp_path / "in/p1_seg_.nii.gz", np.zeros((12, 14, 6), np.uint8))
    (tmp_path / "in/p3_seg_.nii.gz").write_bytes(b"no gzip")
    (tmp_path / "in/p0_img_.nii.gz").unlink()
    message = refused(tmp_path, "-i", tmp_path / "in")
    for name in ("p0_seg_", "p1_seg_", "p3_seg_"):
        assert name in message
    assert "and 2 more that can't be used" in message


def test_one_patient_needs_a_word_on_where_to_put_it(tmp_path):
    dataset(tmp_path / "in", 1)
    assert "one patient (p0), too few to divide" in refused(tmp_path, "-i", tmp_path / "in")


def test_a_dataset_of_which_nothing_is_left_is_refused(tmp_path):
    dataset(tmp_path / "in", 3)
    message = refused(tmp_path, "-i", tmp_path / "in", "--min-pixels", 1000)
    assert "no slice is left: no label has 1000 pixels in any slice of p" in message


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    resource = pytest.importorskip("resource")
    dataset(tmp_path / "in")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        message = refused(tmp_path, "-i", tmp_path / "in")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {tmp_path}/out: File too large" in message


def test_an_earlier_dataset_is_replaced_only_when_asked_and_only_by_success(tmp_path):
    dataset(tmp_path / "in")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
    before = contents(tmp_path / "out")
    assert "out already exists" in refused(tmp_path, "-i", tmp_path / "in")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--overwrite", "--axis", 0)[0] == 0
    after = contents(tmp_path / "out")
    assert after != before
    save(tmp_path / "in/p1_seg_.nii.gz", np.zeros((12, 14, 6), np.uint8))
    refused(tmp_path, "-i", tmp_path / "in", "--overwrite")
    assert contents(tmp_path / "out") == after


def test_nothing_but_its_own_output_is_ever_replaced(tmp_path):
    dataset(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    assert "wasn't made by samri-prepare" in refused(tmp_path, "-i", tmp_path / "in", "--overwrite")
    for source, output in (("in", "in"), ("in", "in/out"), ("in/sub", "in")):
        code, _, err = run("-i", tmp_path / source, "-o", tmp_path / output, "--overwrite")
        assert code == 1
        assert "input" in err
    assert len(contents(tmp_path / "in")) == 8
    assert run("-i", tmp_path / "in", "-o", tmp_path / "made")[0] == 0
    (tmp_path / "made/run").mkdir()
    (tmp_path / "made/run/best.pth").write_bytes(b"weeks of work")
    code, _, err = run("-i", tmp_path / "in", "-o", tmp_path / "made", "--overwrite")
    assert code == 1
    assert "also holds run, which samri-prepare didn't make" in err
    assert (tmp_path / "made/run/best.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plane", "axial", "--axis", 1), "--plane or --axis, not both"),
        (("--ratios", 0, 0, 0), "--ratios needs a number above 0"),
        (("--split", 1, 0, 0, "--splits", "x"), "--ratios or --split-files, not both"),
        (("--pattern", "a.nii", "{case}.nii"), "--pattern: a pattern needs a placeholder"),
        (("--patient", "("), "is not a regular expression"),
        (("--patient", "p"), "needs a group in parentheses"),
        (("--frame", "last"), "neither an index from 0 nor 'all'"),
        (("--min-pixel", 5), "No such option"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path, arguments, words):
    code, _, err = run("-i", tmp_path, "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert words in err


def test_the_documentation_names_options_that_exist():
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    options = {name for option in main.params for name in option.opts}
    assert {"--pattern", "--plane", "--min-pixels", "--skip-bad"} <= set(re.findall(r"--[a-z][a-z-]+", text)) <= options


@pytest.mark.slow
def test_a_real_head_becomes_slices_of_its_tissue(tmp_path):
    head = Path(nilearn.__file__).parent / "datasets" / "data"
    (image,) = head.glob("mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    (matter,) = head.glob("mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz")
    gray_matter = nib.load(matter)
    labels = (np.asarray(gray_matter.dataobj) > 0.5 * np.asarray(gray_matter.dataobj).max()).astype(np.uint8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/mni_t1.nii.gz").write_bytes(image.read_bytes())
    save(tmp_path / "in/mni_gm.nii.gz", labels, gray_matter.affine)
    code, out, _ = run(
        *("-i", tmp_path / "in", "-o", tmp_path / "out", "--pattern", "{case}_t1.nii.gz", "{case}_gm.nii.gz"),
        *("--plane", "axial", "--split", 0, 0, 1),
    )
    assert code == 0
    assert "layout pattern, slices along axial" in out
    per_slice = labels.sum(axis=(0, 1))
    pairs = find_slices(tmp_path / "out" / "testing")
    assert [pair.name for pair in pairs] == [f"mni_img_{k:03d}" for k in np.flatnonzero(per_slice >= 10)]
    assert sum(int(pair.read().mask.sum()) for pair in pairs[:5]) == per_slice[per_slice >= 10][:5].sum()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_dataset_and_no_processes(tmp_path, kind):
    for n in range(20):
        save(tmp_path / f"in/p{n}_img_.nii", volume((32, 32, 400), seed=n) % 999)
        save(tmp_path / f"in/p{n}_seg_.nii", np.ones((32, 32, 400), np.uint8))
    code = "from samri_training.prepare import main; main()"
    arguments = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--num-workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob(".samri-stage.*/**/training/*.nii.gz")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(kind)
    _, err = process.communicate()
    assert not (tmp_path / "out").exists()
    if kind == signal.SIGTERM:
        assert process.returncode == 130
        assert err == "samri-prepare: stopped\n"
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
