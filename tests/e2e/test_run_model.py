"""`samri-run` and the model that comes with SAMRI: used when none is named, and named in what the run leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from samri.bundle import Bundle
from samri_runtime import models
from samri_runtime.run import main
from tests.support.scans import brain_like, save_nifti

DEMONSTRATION = "the model is samri-tiny, which comes with SAMRI: a demonstration, not for clinical use"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `scan.nii.gz` in it."""
    save_nifti(tmp_path / "scan.nii.gz", brain_like((90, 80)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*options: str) -> Result:
    arguments = ["--input", "scan.nii.gz", "--output", "out", "--provider", "cpu", "--box", "20", "15", "60", "70"]
    return CliRunner().invoke(main, [*arguments, *options])


def provenance(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "out" / "scan_seg_.json").read_text("utf-8")))


def test_without_a_model_the_one_that_comes_with_samri_answers_and_one_line_says_so(folder: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines().count(f"samri-run: note: {DEMONSTRATION}") == 1
    written = provenance(folder)
    assert DEMONSTRATION in written["notes"]
    assert written["model"]["name"] == "samri-tiny"
    assert written["model"]["sha256"] == Bundle.open(models.find("samri-tiny")).sha256
    assert str(folder) not in json.dumps(written)


def test_naming_it_is_the_same(folder: Path) -> None:
    run("--no-png")
    left_out = (folder / "out" / "scan_seg_.nii.gz").read_bytes()
    result = run("--model", "samri-tiny", "--no-png")
    assert DEMONSTRATION in result.stderr
    assert (folder / "out" / "scan_seg_.nii.gz").read_bytes() == left_out


def test_a_folder_of_that_name_is_another_model_and_both_can_be_meant(folder: Path, bundle: Path) -> None:
    shutil.copytree(bundle, folder / "samri-tiny")
    result = run()
    assert DEMONSTRATION in result.stderr
    assert "it isn't the model in the folder samri-tiny here: that one is ./samri-tiny" in result.stderr
    assert provenance(folder)["model"]["name"] == "samri-tiny"
    result = run("--model", "./samri-tiny")
    assert "samri-tiny" not in result.stderr
    assert provenance(folder)["model"]["name"] == "small"


def test_a_published_model_type_is_not_answered_by_the_demonstration(folder: Path) -> None:
    result = run("--model-type", "vit_b")
    assert result.exit_code == 1
    assert "not --model-type vit_b: leave the option out" in result.stderr
    assert not (folder / "out").exists()


def test_a_name_that_nobody_knows_is_one_line_with_a_way_out(folder: Path) -> None:
    result = run("--model", "samri-huge")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "no bundle at samri-huge" in line
