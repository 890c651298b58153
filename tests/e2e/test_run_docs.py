"""The commands and the Python of docs/samri-run.md, docs/models.md and docs/migrating.md, run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import pytest
from click.testing import CliRunner

from samri_export.command import main as export
from samri_runtime.run import main as run
from scan_factory import OBLIQUE, brain_like, save_nifti

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = {"samri-run": run, "samri-export": export}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def type_in(command_line: str) -> None:
    program, *arguments = shlex.split(command_line)
    result = CliRunner().invoke(COMMANDS[program], arguments)
    assert result.exit_code == 0, result.stderr


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(bundle, tmp_path / "bundle")
    save_nifti(tmp_path / "scan.nii.gz", brain_like((150, 170, 100)), sform=OBLIQUE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_samri_run_page_work(folder):
    lines = [line for block in blocks("samri-run.md", "sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        type_in(line)
    assert nib.load(folder / "out" / "scan_seg_.nii.gz").shape == (150, 170, 100)


def test_the_python_of_the_samri_run_page_works(folder):
    (code,) = blocks("samri-run.md", "python")
    exec(compile(code, "docs/samri-run.md", "exec"), {})
    assert nib.load(folder / "mask.nii.gz").shape == (150, 170, 100)
    assert (folder / "overlay.png").is_file()


def test_the_command_and_the_python_of_the_models_page_work(folder, capsys):
    (line,) = [line for block in blocks("models.md", "sh") for line in block.splitlines()]
    type_in(line)
    assert nib.load(folder / "out" / "scan_seg_.nii.gz").shape == (150, 170, 100)
    (code,) = blocks("models.md", "python")
    exec(compile(code, "docs/models.md", "exec"), {})
    assert "not for clinical use" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_migration_page_work(folder, checkpoint):
    shutil.copyfile(checkpoint, folder / "samri_vitb_bp.pth")
    save_nifti(folder / "example_img_1.nii.gz", brain_like((1, 240, 256)))
    lines = [line for block in blocks("migrating.md", "sh") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        # No machine that runs the tests is sure to have CUDA.
        type_in(line.replace("--device cuda", "--device cpu"))
    assert nib.load(folder / "infer_output" / "example_img_1_seg_.nii.gz").shape == (1, 240, 256)
