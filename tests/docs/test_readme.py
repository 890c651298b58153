"""The README and the first pages of the site: what they tell a reader to type is typed here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.support.pages import ROOT, blocks, command_lines, type_in
from tests.support.parity import picture

README, QUICKSTART, FINE_TUNING = (ROOT / page for page in ("README.md", "docs/quickstart.md", "docs/finetuning.md"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader: a scan in it, `scan.nii.gz`."""
    volume = np.stack([picture((182, 218), seed) for seed in range(100)], axis=2)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, 1, 1, 1])), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [README, QUICKSTART], ids=lambda page: page.stem)
def test_three_lines_of_python_segment_a_scan(page: Path, folder: Path) -> None:
    (example,) = blocks(page, "python")
    names: dict[str, Any] = {}
    exec(compile(example, page.name, "exec"), names)
    assert names["result"].masks.shape == (1, 218, 182)
    assert nibabel.load(folder / "out" / "scan_seg_.nii.gz").shape == (182, 218, 100)


def test_the_readmes_command_segments_a_scan(folder: Path) -> None:
    (command,) = [command for command in command_lines(README) if command.startswith("samri-")]
    type_in(command)
    assert nibabel.load(folder / "out" / "scan_seg_.nii.gz").shape == (182, 218, 100)


@pytest.mark.slow
def test_the_quickstart_works_as_it_stands(folder: Path, checkpoint: Path) -> None:
    shutil.copy(checkpoint, folder / "sam_vit_b.pth")
    for command in command_lines(QUICKSTART):
        type_in(command)
    for output in ("out", "out-bundle"):
        assert nibabel.load(folder / output / "scan_seg_.nii.gz").shape == (182, 218, 100)


@pytest.mark.slow
def test_fine_tuning_works_as_it_stands(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(checkpoint, tmp_path / "sam_vit_b.pth")
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "volumes" / folder).mkdir(parents=True)
    for patient in range(10):
        volume = np.stack([picture((48, 40), 10 * patient + z) for z in range(2)], axis=2)
        labels = (volume > 150).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"{tmp_path}/volumes/imagesTr/knee_{patient}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), f"{tmp_path}/volumes/labelsTr/knee_{patient}.nii.gz")
    monkeypatch.chdir(tmp_path)
    for command in command_lines(FINE_TUNING):
        type_in(command)
    assert "before" in (tmp_path / "evaluation" / "report.md").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_make_target_exists() -> None:
    targets = [command.split()[1] for command in command_lines(README) if command.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_page_and_picture_that_is_linked_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").split()) <= 500


def test_every_extra_that_the_readme_names_exists() -> None:
    declared = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    text = "".join(page.read_text("utf-8") for page in (README, QUICKSTART, FINE_TUNING, ROOT / "docs/gpu.md"))
    named = {extra for group in re.findall(r"\[([a-z,]+)\]'", text) for extra in group.split(",")}
    assert named
    assert named <= declared
