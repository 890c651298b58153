"""The README is the front door: what it tells a reader to type is typed here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.pages import ROOT, blocks, command_lines, type_in
from tests.support.parity import picture

README = ROOT / "README.md"


FINE_TUNING = ("samri-prepare", "samri-embed", "samri-train", "samri-evaluate")


@pytest.mark.slow
def test_the_readmes_commands_and_example_work_as_they_stand(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(checkpoint, tmp_path / "sam_vit_b.pth")
    volume = np.stack([picture((182, 218), seed) for seed in range(100)], axis=2)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, 1, 1, 1])), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    ours = [command for command in command_lines(README) if command.startswith("samri-")]
    inference = [command for command in ours if not command.startswith(FINE_TUNING)]
    assert [command.split()[0] for command in inference] == ["samri-export", "samri-run", "samri-doctor"]
    for command in inference:
        type_in(command)
    assert nibabel.load("out/scan_seg_.nii.gz").shape == volume.shape

    (example,) = blocks(README, "python")
    names = {"slice_2d": volume[:, :, 90]}
    exec(compile(example, "README.md", "exec"), names)
    assert names["result"].masks.shape == (1, 182, 218)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_readmes_fine_tuning_works_as_it_stands(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(checkpoint, tmp_path / "sam_vit_b.pth")
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "volumes" / folder).mkdir(parents=True)
    for patient in range(10):
        volume = np.stack([picture((48, 40), 10 * patient + z) for z in range(2)], axis=2)
        labels = (volume > 150).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"{tmp_path}/volumes/imagesTr/knee_{patient}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), f"{tmp_path}/volumes/labelsTr/knee_{patient}.nii.gz")
    monkeypatch.chdir(tmp_path)
    steps = [command for command in command_lines(README) if command.startswith(FINE_TUNING)]
    assert [command.split()[0] for command in steps] == list(FINE_TUNING)
    for step in steps:
        type_in(step)
    assert "before" in (tmp_path / "evaluation" / "report.md").read_text()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_make_target_exists() -> None:
    targets = [command.split()[1] for command in command_lines(README) if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_page_and_picture_that_is_linked_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_extra_that_the_readme_names_exists() -> None:
    declared = set(re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    named = {extra for group in re.findall(r"\[([a-z,]+)\]'", README.read_text("utf-8")) for extra in group.split(",")}
    assert named
    assert named <= declared
