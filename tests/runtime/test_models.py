"""The models that come with the package. Nothing here depends on what their weights are, only that there are some."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from samri.bundle import Bundle
from samri.errors import BundleError
from samri_runtime import Predictor, SamPredictor, models
from samri_runtime.doctor._trial import trial_graphs
from tests.support.parity import picture

DEMONSTRATION = "the model is samri-tiny, which comes with SAMRI: a demonstration, not for clinical use"


def test_the_public_names_are_these() -> None:
    assert set(models.__all__) == {"DEFAULT", "find", "locate", "names", "notes_on"}
    assert models.DEFAULT in models.names()


def test_every_folder_of_a_model_has_a_name() -> None:
    folders = {file.parent.name for file in Path(models.__file__).parent.glob("*/manifest.json")}
    assert folders == set(models.names())


@pytest.mark.parametrize("name", models.names())
def test_a_model_is_whole_named_as_its_folder_and_small_enough_for_the_wheel(name: str) -> None:
    bundle = Bundle.open(models.find(name))
    bundle.verify()
    assert bundle.manifest.name == name
    assert bundle.manifest.checkpoint["rounded_to"] == "fp16"
    assert bundle.manifest.verification["smallest_dice"] > 0.999
    files = list(models.find(name).iterdir())
    assert {file.name for file in files} == {"manifest.json", *(graph.file.path for graph in bundle.manifest.graphs)}
    assert sum(len(zlib.compress(file.read_bytes())) for file in files) < 12e6  # As in the wheel.


def test_a_predictor_takes_its_name() -> None:
    predictor = Predictor("samri-tiny", "cpu")
    assert predictor.bundle.folder == models.find("samri-tiny")
    assert predictor.notes == [DEMONSTRATION]
    result = predictor.predict(predictor.encode(picture((180, 150))), boxes=[[30, 40, 110, 120], [5, 5, 60, 70]])
    assert result.masks.shape == (2, 180, 150)
    assert np.isfinite(result.scores).all()


def test_metas_interface_takes_its_name() -> None:
    predictor = SamPredictor("samri-tiny", provider="cpu")
    predictor.set_image(np.repeat(picture((60, 70))[:, :, None], 3, axis=2))
    masks, _, _ = predictor.predict(box=np.array([10, 10, 50, 40]), multimask_output=False)
    assert masks.shape == (1, 60, 70)


def test_the_doctor_takes_its_name() -> None:
    assert {graph.bundle.manifest.name for graph in trial_graphs("samri-tiny")} == {"samri-tiny"}


def test_a_hash_can_be_expected_of_it() -> None:
    sha256 = Bundle.open(models.find("samri-tiny")).sha256
    assert Predictor("samri-tiny", "cpu", expect_sha256=sha256).bundle.sha256 == sha256
    with pytest.raises(BundleError, match="not the expected"):
        Predictor("samri-tiny", "cpu", expect_sha256="0" * 64)


@pytest.fixture
def own_folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of one's own in a folder `samri-tiny` of the working directory."""
    shutil.copytree(bundle, tmp_path / "samri-tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "samri-tiny"


def test_the_name_means_the_same_model_wherever_a_program_runs_and_says_so(own_folder: Path) -> None:
    predictor = Predictor("samri-tiny", "cpu")
    assert predictor.bundle.folder == models.find("samri-tiny")
    assert predictor.notes == [
        DEMONSTRATION,
        "it isn't the model in the folder samri-tiny here: that one is ./samri-tiny",
    ]


@pytest.mark.parametrize("spelled", ["./samri-tiny", "samri-tiny/", Path("samri-tiny"), "ABSOLUTE"])
def test_anything_but_the_bare_name_is_the_folder(spelled: str | Path, own_folder: Path) -> None:
    predictor = Predictor(own_folder if spelled == "ABSOLUTE" else spelled, "cpu")
    assert predictor.manifest.name == "small"
    assert predictor.notes == []


def test_a_folder_that_holds_no_model_is_nothing_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "samri-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models.notes_on("samri-tiny") == (DEMONSTRATION,)


@pytest.mark.parametrize("name", ["samri-huge", "", ".", "..", "../models/samri-tiny", "samri_tiny"])
def test_what_does_not_come_with_the_package_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"^no model named .* comes with SAMRI, only samri-tiny$"):
        models.find(name)


def test_an_installation_without_the_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_FOLDER", tmp_path)
    shutil.copytree(Path(models.__file__).parent / "samri-tiny", tmp_path / "here" / "samri-tiny")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BundleError, match="although it comes with SAMRI: install samri again"):
        Predictor("samri-tiny", "cpu")
