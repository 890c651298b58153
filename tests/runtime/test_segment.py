"""`samri.segment`: a scan and prompts in; masks in the scan's grid, and the files of `samri-run`, out."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

import samri
from samri.errors import InputError, OutputError, PromptError, ProviderError
from samri.io import Scan
from samri.prompts import Prompt
from samri_runtime import Predictor
from samri_runtime.run import main
from samri_runtime.segment import SliceChoiceError
from tests.support.scans import affine, brain_like, save_nifti

BOXES = [(5, 6, 30, 40), (20, 10, 36, 44)]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    return samri.read_scan(save_nifti(path, brain_like((40, 50, 12)), sform=affine(zooms=(1.0, 1.5, 2.0))))


@pytest.fixture(scope="module")
def model() -> Predictor:
    return samri.load_model("samri-tiny", provider="cpu")


def test_masks_lie_in_the_grid_of_the_scan(scan: Scan, model: Predictor) -> None:
    result = samri.segment(scan, model, slice=7, boxes=BOXES)
    image = scan.voxels[:, :, 7]
    expected = model.predict(model.encode(image), boxes=BOXES)
    np.testing.assert_array_equal(result.masks, expected.masks)
    np.testing.assert_array_equal(result.scores, expected.scores)
    assert result.label_map.shape == scan.grid and result.label_map.dtype == np.uint8
    covered = result.label_map[:, :, 7] > 0
    np.testing.assert_array_equal(covered, expected.masks.any(axis=0))
    assert np.count_nonzero(result.label_map) == np.count_nonzero(covered) > 0


def test_volumes_are_voxels_times_their_size(scan: Scan, model: Predictor) -> None:
    result = samri.segment(scan, model, slice=7, boxes=BOXES, names=["left", "right"])
    counts = [np.count_nonzero(result.label_map == label) for label in (1, 2)]
    assert result.volumes_mm3 is not None
    np.testing.assert_allclose(result.volumes_mm3, np.array(counts) * 3.0)
    (objects,) = result.provenance["candidates"]
    assert [(one["name"], one["voxels"]) for one in objects] == [("left", counts[0]), ("right", counts[1])]
    assert [one["volume_mm3"] for one in objects] == pytest.approx(result.volumes_mm3.tolist())


def test_points_and_candidates(scan: Scan, model: Predictor) -> None:
    result = samri.segment(
        scan, model, plane="sagittal", slice=20, points=[[25, 6], [3, 3]], point_labels=[1, 0], multimask=True
    )
    assert result.masks.shape == (1, 3, *result.view.shape)
    assert [labels.shape for labels in result.label_maps()] == [scan.grid] * 3
    assert result.view.plane == "sagittal"


def test_a_path_and_a_name_are_enough(scan: Scan) -> None:
    result = samri.segment(scan.path, slice=7, boxes=BOXES[0])
    assert result.provenance["model"]["name"] == "samri-tiny"
    assert result.scores.shape == (1,)


@pytest.mark.parametrize("multimask", [False, True])
def test_saved_files_are_those_of_the_command(scan: Scan, tmp_path: Path, multimask: bool) -> None:
    with Predictor("samri-tiny", "cpu", prompts_per_image=1) as model:
        saved = samri.segment(scan, model, slice=7, boxes=BOXES[:1], multimask=multimask).save(tmp_path / "python")
    options = ["--slice", "7", "--box", *map(str, BOXES[0]), "--provider", "cpu", *["--multimask"] * multimask]
    command = ["-i", str(scan.path), "-o", str(tmp_path / "command"), "--no-cache", *options]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in saved] == [Path(line).name for line in done.stdout.splitlines()[-len(saved) :]]
    for path in saved:
        theirs = tmp_path / "command" / path.name
        if path.suffix == ".gz":
            np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(theirs).dataobj)
        elif path.suffix == ".png":
            assert path.read_bytes() == theirs.read_bytes()
        else:
            ours, other = (json.loads(file.read_text()) for file in (path, theirs))
            for record in (ours, other):
                for varies in ("created", "seconds", "sha256", "files"):
                    record.pop(varies, None)
                record["embedding"]["made"].pop("created")
            assert ours == other


def test_files_of_others_are_not_replaced(scan: Scan, model: Predictor, tmp_path: Path) -> None:
    result = samri.segment(scan, model, slice=7, boxes=BOXES)
    (tmp_path / "scan_overlay.png").write_text("mine")
    with pytest.raises(OutputError, match="scan_overlay"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["scan_overlay.png"]
    result.save(tmp_path, overwrite=True)
    result.save(tmp_path)  # Its own results may be replaced.


def test_mistakes_are_named(scan: Scan, model: Predictor) -> None:
    with pytest.raises(SliceChoiceError, match="choose --slice 0 to 11"):
        samri.segment(scan, model, boxes=BOXES)
    with pytest.raises(SliceChoiceError, match="not both"):
        samri.segment(scan, model, axis=0, plane="axial", slice=1, boxes=BOXES)
    with pytest.raises(PromptError, match="no prompt"):
        samri.segment(scan, model, slice=7)
    with pytest.raises(PromptError, match="either prompts"):
        samri.segment(scan, model, slice=7, boxes=BOXES, prompts=[Prompt.of(box=BOXES[0])])
    with pytest.raises(InputError, match="one name"):
        samri.segment(scan, model, slice=7, boxes=BOXES, names=["one"])
    with pytest.raises(InputError, match="frame"):
        samri.segment(scan, model, slice=7, boxes=BOXES, frame=0)


def test_a_prompt_outside_the_slice_is_refused_before_the_encoder_runs(
    scan: Scan, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "encode", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(PromptError, match="outside the image"):
        samri.segment(scan, model, slice=7, points=[[500, 500]])


@pytest.mark.parametrize("broken", ["low_res", "scores"])
def test_a_model_that_computes_nan_is_refused(
    scan: Scan, model: Predictor, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def decoder(features: np.ndarray, _coords: object, labels: np.ndarray, *_: object) -> tuple[np.ndarray, np.ndarray]:
        low_res = np.full((len(labels), 1, 128, 128), np.nan if broken == "low_res" else 0, np.float32)
        return low_res, np.full((len(labels), 1), np.inf if broken == "scores" else 0, np.float32)

    decoder.session = model._model.decoder.session  # type: ignore[attr-defined]
    monkeypatch.setattr(model._model, "decoder", decoder)
    with pytest.raises(ProviderError, match="NaN or infinite"):
        samri.segment(scan, model, slice=7, boxes=BOXES)
