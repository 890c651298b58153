"""The notebooks are stored without output and run from their first cell to their last."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import nibabel
import numpy as np
import pytest
from nbclient import NotebookClient

from tests.support.parity import picture

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def execute(name: str, folder: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")


@pytest.mark.slow
def test_inference_step_by_step_gives_the_commands_mask(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    volume = np.stack([picture((182, 218), seed) for seed in range(95)], axis=2)
    affine = np.array([[-0.9, 0.1, 0, 80], [0.1, 0.9, 0.05, -120], [0, -0.05, 2.0, -60], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "demo" / "t1.nii.gz")
    execute("infer_step_by_step.ipynb", tmp_path)
    command = (
        "samri-run --model samri-tiny --input demo/t1.nii.gz --output out --plane axial --slice 86 --box 99 74 116 102"
    )
    assert command in (NOTEBOOKS / "infer_step_by_step.ipynb").read_text()
    program, *arguments = command.split()
    subprocess.run([Path(sys.executable).parent / program, *arguments], cwd=tmp_path, check=True, capture_output=True)
    theirs = nibabel.load(tmp_path / "out" / "t1_seg_.nii.gz")
    ours = nibabel.load(tmp_path / "notebook_output" / "mask.nii.gz")
    assert np.asarray(theirs.dataobj).any()
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert np.array_equal(ours.affine, theirs.affine)
    assert (tmp_path / "notebook_output" / "overlay.png").stat().st_size > 0


@pytest.mark.slow
def test_fine_tuning_goes_from_volumes_to_a_bundle(tmp_path: Path, checkpoint: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "sam_vit_b.pth")
    images, labels = tmp_path / "volumes" / "imagesTr", tmp_path / "volumes" / "labelsTr"
    images.mkdir(parents=True)
    labels.mkdir()
    for patient in range(5):
        volume = np.stack([picture((48, 40), 10 * patient + z) for z in range(3)], axis=2)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), images / f"knee_{patient:03d}_0000.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image((volume > 150).astype(np.uint8), np.eye(4)), labels / f"knee_{patient:03d}.nii.gz"
        )
    execute("finetune_on_your_data.ipynb", tmp_path)
    assert (tmp_path / "finetuning" / "bundle" / "manifest.json").is_file()
    assert (tmp_path / "finetuning" / "run" / "best.pth").is_file()
