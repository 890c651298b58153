"""The commands and the Python of docs/samri-run.md, docs/models.md and docs/migrating.md, run as they stand."""

from __future__ import annotations

import shutil

import nibabel as nib
import pytest

from tests.support.pages import DOCS, blocks, command_lines, type_in
from tests.support.scans import brain_like, save_nifti


def test_the_commands_of_the_samri_run_page_work(folder):
    for line in command_lines(DOCS / "samri-run.md"):
        type_in(line)
    assert nib.load(folder / "out" / "scan_seg_.nii.gz").shape == (150, 170, 100)


def test_the_python_of_the_samri_run_page_works(folder):
    for code in blocks(DOCS / "samri-run.md", "python"):
        exec(compile(code, "docs/samri-run.md", "exec"), {})
    assert nib.load(folder / "mask.nii.gz").shape == (150, 170, 100)
    assert (folder / "overlay.png").is_file()


def test_the_command_and_the_python_of_the_models_page_work(folder, capsys):
    for line in command_lines(DOCS / "models.md"):
        type_in(line)
    assert nib.load(folder / "out" / "scan_seg_.nii.gz").shape == (150, 170, 100)
    for code in blocks(DOCS / "models.md", "python"):
        exec(compile(code, "docs/models.md", "exec"), {})
    assert "not for clinical use" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_migration_page_work(folder, checkpoint):
    shutil.copyfile(checkpoint, folder / "samri_vitb_bp.pth")
    save_nifti(folder / "example_img_1.nii.gz", brain_like((1, 240, 256)))
    for line in command_lines(DOCS / "migrating.md"):
        # No machine that runs the tests is sure to have CUDA.
        type_in(line.replace("--device cuda", "--device cpu"))
    assert nib.load(folder / "infer_output" / "example_img_1_seg_.nii.gz").shape == (1, 240, 256)
