"""`samri-run` from the command line to the files, with nibabel and Pillow as oracles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samri.bundle import Bundle, write_manifest
from samri.io import PALETTE
from samri.postprocessing import upscale_logits
from samri.preprocessing import profile
from samri_runtime import Predictor
from samri_runtime.run import main
from samri_runtime.segment import LabelMap
from tests.support.examples import examples
from tests.support.scans import FLIPPED, OBLIQUE, OBLIQUE_FLIPPED, affine, brain_like, save_nifti

BOX = (12.5, 10, 30, 41)


def run(bundle: Path, source: Path, output: Path, *options: object) -> Result:
    return CliRunner().invoke(
        main,
        ["--model", str(bundle), "--input", str(source), "--output", str(output), *[str(option) for option in options]],
    )


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr
    return result


def box_option(box: tuple[float, ...] = BOX) -> tuple[object, ...]:
    return ("--box", *box)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, "cpu", prompts_per_image=1)  # As the command has it, to the last bit.


@pytest.fixture(scope="module")
def medsam_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("medsam") / "bundle"
    shutil.copytree(bundle, folder)
    write_manifest(folder, dataclasses.replace(Bundle.open(bundle).manifest, profile=profile("medsam")))
    return folder


@pytest.fixture
def slice_2d() -> np.ndarray:
    return brain_like((50, 64))


def expected_mask(predictor: Predictor, shown: np.ndarray, box: tuple[float, ...] = BOX) -> np.ndarray:
    mask = predictor.predict(predictor.encode(shown), boxes=box).masks[0]
    assert 0.02 < mask.mean() < 0.98
    return mask


@pytest.mark.parametrize("shape", [(50, 64), (1, 50, 64), (50, 64, 1), (50, 64, 1, 1)])
def test_a_2d_nifti_is_segmented_as_its_array(bundle, predictor, tmp_path, slice_2d, shape):
    source = save_nifti(tmp_path / "case 1.nii.gz", slice_2d.reshape(shape), sform=OBLIQUE)
    result = succeeded(run(bundle, source, tmp_path / "out", *box_option()))

    assert names(tmp_path / "out") == [
        "case 1_overlay.png",
        "case 1_seg_.json",
        "case 1_seg_.nii.gz",
        "case 1_seg_.png",
    ]
    line, *files = result.stdout.splitlines()
    assert line.startswith("object 1: score ")
    assert sorted(files) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    written = nib.load(tmp_path / "out" / "case 1_seg_.nii.gz")
    expected = expected_mask(predictor, slice_2d)
    assert written.shape == shape[:3]
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, nib.load(source).affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(50, 64), expected)
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "case 1_seg_.png"), np.where(expected, 255, 0))


@pytest.mark.parametrize(
    ("axis", "matrix"),
    [(0, OBLIQUE), (1, OBLIQUE_FLIPPED), (2, FLIPPED)],
    ids=["0, oblique", "1, oblique and flipped", "2, flipped"],
)
def test_a_slice_across_an_array_axis_is_masked_in_place(bundle, predictor, tmp_path, axis, matrix):
    volume = brain_like((40, 50, 60))
    source = save_nifti(tmp_path / "scan.nii.gz", volume, sform=matrix, sform_code=1, qform=FLIPPED, qform_code=2)
    succeeded(run(bundle, source, tmp_path / "out", "--axis", axis, "--slice", 17, *box_option()))

    before, after = nib.load(source), nib.load(tmp_path / "out" / "scan_seg_.nii.gz")
    expected = np.zeros(volume.shape, bool)
    expected[(slice(None),) * axis + (17,)] = expected_mask(predictor, np.take(volume, 17, axis))
    np.testing.assert_array_equal(np.asarray(after.dataobj), expected)
    np.testing.assert_array_equal(after.affine, before.affine)
    for form in ("get_sform", "get_qform"):
        first, second = getattr(before, form)(coded=True), getattr(after, form)(coded=True)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1] == second[1]


def radiological(canonical: np.ndarray, plane: str, index: int) -> np.ndarray:
    """The display convention, spelled out on a volume that nibabel turned to right, anterior, superior."""
    if plane == "axial":
        return canonical[::-1, ::-1, index].T
    if plane == "coronal":
        return canonical[::-1, index, ::-1].T
    return canonical[index, ::-1, ::-1].T


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(
    "matrix",
    [OBLIQUE_FLIPPED, np.array([[0, 0, 2.0, 5], [-1, 0, 0, 6], [0, -1.5, 0, 7], [0, 0, 0, 1]])],
    ids=["oblique and flipped", "PIR"],
)
def test_a_plane_is_shown_as_radiologists_do_and_masked_in_place(bundle, predictor, tmp_path, plane, matrix):
    source = save_nifti(tmp_path / "scan.nii.gz", brain_like((44, 52, 60)), sform=matrix)
    box = (8, 6, 30, 33)
    succeeded(run(bundle, source, tmp_path / "out", "--plane", plane, "--slice", 20, *box_option(box)))

    canonical = np.asarray(nib.as_closest_canonical(nib.load(source)).dataobj)
    mask = np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "out" / "scan_seg_.nii.gz")).dataobj)
    expected = expected_mask(predictor, radiological(canonical, plane, 20), box)
    np.testing.assert_array_equal(radiological(mask, plane, 20), expected)
    assert mask.sum() == expected.sum()
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "scan_seg_.png") > 0, expected)


def test_a_plane_of_a_scan_without_orientation_is_called_a_guess(bundle, tmp_path):
    for name, sform in (("known.nii.gz", np.eye(4)), ("unknown.nii.gz", None)):
        source = save_nifti(tmp_path / name, brain_like((44, 52, 60)), sform=sform)
        result = succeeded(
            run(bundle, source, tmp_path / "out", "--plane", "axial", "--slice", 20, "--box", 8, 6, 30, 33)
        )
        assert ("only a guess" in result.stderr) == (sform is None)


def test_a_frame_of_a_4d_image_is_masked_in_the_shape_of_one_frame(bundle, predictor, tmp_path):
    series = np.stack([brain_like((40, 50, 6), seed) for seed in range(3)], axis=-1)
    source = save_nifti(tmp_path / "bold.nii.gz", series, sform=OBLIQUE, units=("mm", "msec"))
    result = succeeded(run(bundle, source, tmp_path / "out", "--frame", 2, "--slice", 4, *box_option(), "--json"))
    written = nib.load(tmp_path / "out" / "bold_seg_.nii.gz")
    assert written.shape == (40, 50, 6)
    assert written.header.get_xyzt_units() == ("mm", "msec")
    np.testing.assert_array_equal(np.asarray(written.dataobj)[:, :, 4], expected_mask(predictor, series[:, :, 4, 2]))
    assert json.loads(result.stdout)["input"]["frame"] == 2


GRAY = (np.clip(brain_like((50, 64)) / 4, 0, 255)).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "image"),
    [
        (".png", GRAY),
        (".png", GRAY.astype(np.uint16) * 250),
        (".png", np.dstack([GRAY, GRAY[::-1], GRAY[:, ::-1]])),
        (".png", np.dstack([GRAY, GRAY[::-1], GRAY[:, ::-1], 255 - GRAY])),
        (".tif", GRAY.astype(np.uint16) * 250),
        (".tif", np.dstack([GRAY, GRAY[::-1], GRAY[:, ::-1], 255 - GRAY])),
        (".tiff", GRAY.astype(np.float32) / 255),
        (".jpg", GRAY),
    ],
    ids=["gray PNG", "16-bit PNG", "RGB PNG", "RGBA PNG", "16-bit TIFF", "RGBA TIFF", "float TIFF", "JPEG"],
)
def test_a_picture_is_segmented_into_one_slice_without_geometry(bundle, predictor, tmp_path, suffix, image):
    source = tmp_path / f"picture{suffix}"
    if suffix.startswith(".tif"):
        kind = "rgb" if image.ndim == 3 else "minisblack"
        tifffile.imwrite(
            source, image, photometric=kind, **({"extrasamples": ["unassalpha"]} if image.ndim == 3 else {})
        )
    else:
        Image.fromarray(image).save(source, **({"quality": 100} if suffix == ".jpg" else {}))
    succeeded(run(bundle, source, tmp_path / "out", *box_option()))
    written = nib.load(tmp_path / "out" / "picture_seg_.nii.gz")
    assert written.shape == (1, 50, 64)
    np.testing.assert_array_equal(written.affine, np.eye(4))
    expected = expected_mask(predictor, image[..., :3] if image.ndim == 3 else image)
    agreement = (np.asarray(written.dataobj)[0] == expected).mean()
    assert agreement == 1 or (suffix == ".jpg" and agreement > 0.99)


def test_several_boxes_give_one_label_map_with_overlaps_to_the_surer_object(bundle, predictor, tmp_path, slice_2d):
    boxes = [(5, 5, 40, 40), (20, 10, 60, 45), (30.5, 2.25, 50, 20)]
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    options = [option for box in boxes for option in box_option(box)]
    succeeded(run(bundle, source, tmp_path / "out", *options))

    logits = predictor.predict(predictor.encode(slice_2d), boxes=boxes).logits()
    expected = np.zeros(slice_2d.shape, int)
    for row, column in np.ndindex(*slice_2d.shape):
        surest = max(range(3), key=lambda number: logits[number, row, column])
        if logits[surest, row, column] > 0:
            expected[row, column] = surest + 1
    np.testing.assert_array_equal(load(tmp_path / "out" / "scan_seg_.nii.gz"), expected)
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    overlay = pixels(tmp_path / "out" / "scan_overlay.png")
    for color in PALETTE[:3]:
        assert (overlay == color).all(axis=-1).any()


def label_map(logits: np.ndarray) -> np.ndarray:
    drawn = LabelMap(logits.shape[1:], len(logits))
    for one in logits:
        drawn.add(one)
    return drawn.labels


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (700, np.uint16)])
def test_objects_drawn_one_by_one_are_those_of_all_logits_at_once(count, dtype):
    # Few values, so that there are ties; and a column where nothing is found.
    logits = np.random.default_rng(count).integers(-3, 4, (count, 20, 30)).astype(np.float32) / 2
    logits[:, :, 3] = -1
    labels = label_map(logits)
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, np.where(logits.max(axis=0) > 0, logits.argmax(axis=0) + 1, 0))


@settings(max_examples=examples(50))
@given(
    count=st.integers(1, 5),
    values=st.lists(st.sampled_from((-2.0, -1.0, 0.0, 0.5, 1.0)), min_size=30, max_size=30),
)
def test_a_pixel_belongs_to_the_first_of_the_surest_objects_or_to_none(count, values):
    logits = np.array(values[: 6 * count], np.float32).reshape(count, 2, 3)
    labels = label_map(logits)
    assert labels.dtype == np.uint8
    for row, column in np.ndindex(2, 3):
        here = logits[:, row, column].tolist()
        assert labels[row, column] == (here.index(max(here)) + 1 if max(here) > 0 else 0)


def test_more_than_255_boxes_are_labelled_in_16_bits(bundle, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    options = [option for number in range(260) for option in box_option((number % 40, number // 40, 60, 45))]
    succeeded(run(bundle, source, tmp_path / "out", *options, "--no-png"))
    provenance = json.loads((tmp_path / "out" / "scan_seg_.json").read_text())
    assert len(provenance["prompts"]) == 260
    labels = load(tmp_path / "out" / "scan_seg_.nii.gz")
    assert labels.dtype == (np.uint16 if labels.max() > 255 else np.uint8)


def test_points_and_one_box_form_one_prompt(bundle, predictor, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    embedding = predictor.encode(slice_2d)
    cases = {
        "point": (["--point", 20, 25.5], {"points": [[20, 25.5]], "point_labels": [1]}),
        "points": (
            ["--negative-point", 5, 6, "--point", 20, 25, "--point", 30, 31],
            {"points": [[20, 25], [30, 31], [5, 6]], "point_labels": [1, 1, 0]},
        ),
        "box and points": (
            [*box_option(), "--point", 20, 25, "--negative-point", 50, 6],
            {"boxes": [BOX], "points": [[[20, 25], [50, 6]]], "point_labels": [[1, 0]]},
        ),
    }
    masks = {}
    for name, (options, arguments) in cases.items():
        succeeded(run(bundle, source, tmp_path / name, *options))
        masks[name] = load(tmp_path / name / "scan_seg_.nii.gz")
        np.testing.assert_array_equal(masks[name], predictor.predict(embedding, **arguments).masks[0])
    assert len({mask.tobytes() for mask in masks.values()}) == 3


def test_multimask_writes_the_three_candidates(bundle, predictor, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    result = succeeded(run(bundle, source, tmp_path / "out", *box_option(), "--multimask", "--json"))
    assert names(tmp_path / "out") == [
        "scan_overlay.png",
        "scan_seg_.json",
        *[f"scan_seg_{number}{suffix}" for number in (1, 2, 3) for suffix in (".nii.gz", ".png")],
    ]
    prediction = predictor.predict(predictor.encode(slice_2d), boxes=BOX, multimask=True)
    for number in range(3):
        np.testing.assert_array_equal(
            load(tmp_path / "out" / f"scan_seg_{number + 1}.nii.gz"), prediction.masks[0, number]
        )
    scores = [candidate[0]["score"] for candidate in json.loads(result.stdout)["candidates"]]
    np.testing.assert_allclose(scores, prediction.scores[0], rtol=1e-5)


def test_a_box_partly_outside_is_clipped_with_a_note(bundle, predictor, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    result = succeeded(run(bundle, source, tmp_path / "out", "--box", -9, -3.5, 30, 41))
    notes = [line for line in result.stderr.splitlines() if "note:" in line]
    assert len(notes) == 1
    assert "clipped to (0, 0, 30, 41)" in notes[0]
    assert "clipped" not in result.stdout
    expected = expected_mask(predictor, slice_2d, (0, 0, 30, 41))
    np.testing.assert_array_equal(load(tmp_path / "out" / "scan_seg_.nii.gz"), expected)


def test_medsam_takes_its_intensities_from_the_whole_volume(medsam_bundle, tmp_path):
    volume = brain_like((40, 50, 20))
    source = save_nifti(tmp_path / "scan.nii.gz", volume)
    result = succeeded(run(medsam_bundle, source, tmp_path / "out", "--slice", 3, *box_option(), "--json"))
    expected = np.percentile(volume[volume != 0], (0.5, 99.5))
    np.testing.assert_allclose(json.loads(result.stdout)["model"]["intensity_range"], expected)
    model = Predictor(medsam_bundle, "cpu")
    mask = model.predict(model.encode(volume[:, :, 3], tuple(expected)), boxes=BOX).masks[0]
    np.testing.assert_array_equal(load(tmp_path / "out" / "scan_seg_.nii.gz")[:, :, 3], mask)


def test_a_constant_image_is_no_error(bundle, tmp_path):
    for value in (0, 700):
        source = save_nifti(tmp_path / "flat.nii.gz", np.full((50, 64), value, np.int16))
        succeeded(run(bundle, source, tmp_path / str(value), *box_option()))


def test_the_provenance_says_how_the_mask_came_about(bundle, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    result = succeeded(run(bundle, source, tmp_path / "out", *box_option(), "--provider", "cpu", "--json"))
    printed = json.loads(result.stdout)
    written = json.loads((tmp_path / "out" / "scan_seg_.json").read_text())
    assert printed == {**written, "files": printed["files"]}
    assert sorted(printed["files"]) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert written["input"]["name"] == "scan.nii.gz"
    assert str(tmp_path) not in json.dumps(written)
    assert written["input"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert written["model"]["sha256"] == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert written["model"]["graphs"]["decoder"] == hashlib.sha256((bundle / "decoder.onnx").read_bytes()).hexdigest()
    assert written["model"]["profile"] == "samri"
    assert written["provider"] == {"requested": "cpu", "ran": {"encoder": "cpu", "decoder": "cpu"}}
    assert written["prompts"] == [{"box": list(BOX), "points": [], "labels": []}]
    assert written["candidates"][0][0]["voxels"] == load(tmp_path / "out" / "scan_seg_.nii.gz").sum()


def test_objects_are_listed_with_name_score_voxels_and_volume(bundle, tmp_path):
    source = save_nifti(tmp_path / "scan.nii.gz", brain_like((50, 64, 3)), sform=affine(zooms=(0.5, 2.0, 3.0)))
    options = ("--slice", 1, *box_option(), *box_option((5, 5, 20, 20)), "--label", "left hip", "--label", "right hip")
    result = succeeded(run(bundle, source, tmp_path / "out", *options))
    written = json.loads((tmp_path / "out" / "scan_seg_.json").read_text())["candidates"][0]
    assert [one["name"] for one in written] == ["left hip", "right hip"]
    assert [one["volume_mm3"] for one in written] == pytest.approx([3 * one["voxels"] for one in written])
    first = written[0]
    line = f"object 1 (left hip): score {first['score']:.3f}, {first['voxels']} voxels, {first['volume_mm3']:.6g} mm3"
    assert result.stdout.splitlines()[0] == line
    for wrong in (("--label", "one"), ("--label", "a", "--label", "a"), ("--label", "", "--label", "b")):
        assert run(bundle, source, tmp_path / "no", *options[:12], *wrong).exit_code == 2


@pytest.mark.parametrize("options", [(), ("--axis", 1), ("--axis", 1, "--slice", 0), ("--plane", "Coronal")])
def test_one_coronal_slice_needs_no_number(bundle, tmp_path, options):
    source = save_nifti(tmp_path / "scan.nii.gz", brain_like((50, 1, 64)), sform=np.eye(4))
    succeeded(run(bundle, source, tmp_path / "out", *options, *box_option()))
    assert load(tmp_path / "out" / "scan_seg_.nii.gz").any()


def test_a_hot_voxel_that_takes_the_range_is_told(bundle, tmp_path):
    hot = brain_like((50, 64)).astype(np.float32)
    for value, told in ((900, False), (20000, True)):
        hot[2, 3] = value
        result = succeeded(run(bundle, save_nifti(tmp_path / f"{value}.nii.gz", hot), tmp_path / "out", *box_option()))
        assert ("a few bright pixels" in result.stderr) == told


def test_a_second_run_replaces_the_first_and_gives_the_same_mask(bundle, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    output = tmp_path / "a" / "b" / "out"
    masks = []
    for _ in range(2):
        succeeded(run(bundle, source, output, *box_option(), "--threads", 1))
        masks.append((output / "scan_seg_.nii.gz").read_bytes())
    assert masks[0] == masks[1]
    assert len(names(output)) == 4


def test_the_published_scripts_spellings_are_understood(bundle, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "example_img_1.nii.gz", slice_2d.reshape(1, 50, 64))
    arguments = ["--checkpoint", bundle, "-i", source, "-o", tmp_path / "out", "--device", "cpu", *box_option()]
    arguments += ["--point", 20, 25, "--negative_point", 3, 4, "--no_png"]
    succeeded(CliRunner().invoke(main, [str(argument) for argument in arguments]))
    assert names(tmp_path / "out") == ["example_img_1_seg_.json", "example_img_1_seg_.nii.gz"]


@pytest.mark.parametrize(
    ("device", "provider", "options"),
    [("cpu", "cpu", {}), ("cuda", "cuda", {}), ("cuda:1", "cuda", {"device_id": "1"}), ("mps", "coreml", {})],
)
def test_pytorch_devices_name_providers(device, provider, options):
    from samri_runtime.providers import provider_of_device

    assert provider_of_device(device) == (provider, options)


def test_a_model_type_must_be_that_of_the_bundle(bundle, tmp_path, slice_2d):
    source = save_nifti(tmp_path / "scan.nii.gz", slice_2d)
    result = run(bundle, source, tmp_path / "out", *box_option(), "--model_type", "samri")
    assert result.exit_code == 1
    assert "not --model-type samri" in result.stderr
    manifest = dataclasses.replace(Bundle.open(bundle).manifest, backbone="vit_b")
    shutil.copytree(bundle, tmp_path / "vit_b")
    write_manifest(tmp_path / "vit_b", manifest)
    succeeded(run(tmp_path / "vit_b", source, tmp_path / "out", *box_option(), "--model-type", "samri"))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 6.0), (6.0, 1.0, 1.0)])
def test_the_overlay_shows_anisotropic_voxels_in_true_proportions(bundle, tmp_path, spacing):
    source = save_nifti(tmp_path / "scan.nii.gz", brain_like((30, 60, 30)), sform=affine(zooms=spacing))
    succeeded(run(bundle, source, tmp_path / "out", "--axis", 1, "--slice", 30, "--box", 3, 3, 20, 20))
    height, width, _ = pixels(tmp_path / "out" / "scan_overlay.png").shape
    assert height / width == pytest.approx(spacing[0] / spacing[2], rel=0.02)
    assert pixels(tmp_path / "out" / "scan_seg_.png").shape == (30, 30)


def test_results_of_an_earlier_run_do_not_stay_beside_those_of_a_later_one(bundle, tmp_path, slice_2d):
    source, output = save_nifti(tmp_path / "scan.nii.gz", slice_2d), tmp_path / "out"
    output.mkdir()
    (output / "scan_seg_by_hand.nii.gz").write_bytes(b"another's")
    (output / "scan_overlay.png").write_bytes(b"another's")
    succeeded(run(bundle, source, output, *box_option(), "--no-png"))
    assert (output / "scan_overlay.png").read_bytes() == b"another's"  # No provenance said that it was ours.
    assert run(bundle, source, output, *box_option(), "--multimask").exit_code == 1
    succeeded(run(bundle, source, output, *box_option(), "--multimask", "--overwrite"))
    assert len(names(output)) == 9
    result = succeeded(run(bundle, source, output, *box_option(), "--no-png"))
    assert names(output) == ["scan_seg_.json", "scan_seg_.nii.gz", "scan_seg_by_hand.nii.gz"]
    assert "replaced the results of an earlier run" in result.stderr
    assert "scan_seg_2.png" in result.stderr


def test_logits_are_computed_once(bundle, predictor, slice_2d):
    prediction = predictor.predict(predictor.encode(slice_2d), boxes=[BOX], multimask=True)
    assert prediction.logits() is prediction.logits()
    np.testing.assert_array_equal(prediction.logits() > 0, prediction.masks)
    again = upscale_logits(prediction.low_res_logits, slice_2d.shape, prediction.profile, prediction.image_size)
    np.testing.assert_array_equal(prediction.logits(), again)
