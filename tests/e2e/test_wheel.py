"""The built wheel in a clean environment: what a user gets from pip, without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.parity import picture

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(a) for a in arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_a_bundle_in_a_clean_environment_without_torch(bundle: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    contents = zipfile.ZipFile(wheel).infolist()
    top_level = {file.filename.partition("/")[0] for file in contents}
    assert {name for name in top_level if not name.endswith(".dist-info")} == TOP_LEVEL
    shipped = [file for file in contents if file.filename.startswith("samri_runtime/models/samri-tiny/")]
    assert len(shipped) >= 3
    assert sum(file.compress_size for file in shipped) < 12e6

    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    run(binaries / "python", "-m", "pip", "install", "--quiet", f"{wheel}[cpu,io]", cwd=tmp_path)
    installed = {
        line.split()[0].lower() for line in run(binaries / "python", "-m", "pip", "list", cwd=tmp_path).splitlines()
    }
    assert {"samri", "onnxruntime", "nibabel"} <= installed
    assert not {"torch", "torchvision", "onnx", "segment-anything", "monai"} & installed

    affine = np.array([[0.0, 0, 2, -10], [-0.9, 0, 0, 30], [0, 1.1, 0, 5], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.stack([picture((90, 70))] * 3, axis=2), affine), tmp_path / "scan.nii.gz")
    arguments = [
        "--model",
        bundle,
        "--input",
        "scan.nii.gz",
        "--output",
        "out",
        "--slice",
        "1",
        "--box",
        "10",
        "10",
        "50",
        "60",
    ]
    run(binaries / "samri-run", *arguments, cwd=tmp_path)
    mask = nibabel.load(tmp_path / "out" / "scan_seg_.nii.gz")
    assert mask.shape == (90, 70, 3)
    assert np.array_equal(mask.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    run(binaries / "samri-doctor", "--model", bundle, cwd=tmp_path)
    # The model that comes with the wheel answers where none is named, and by its name.
    run(binaries / "samri-run", *arguments[2:], "--no-png", cwd=tmp_path)
    assert "not for clinical use" in (tmp_path / "out" / "scan_seg_.json").read_text("utf-8")
    run(binaries / "python", "-I", "-c", PROGRAM, cwd=tmp_path)
    assert np.load(tmp_path / "masks.npy").shape == (1, 90, 70)
    # What export needs isn't there, and that is said in one line.
    done = subprocess.run([str(binaries / "samri-export"), "--help"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        [str(binaries / "samri-export"), "--checkpoint", "x.pth", "--output", "y"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'samri[cpu,export]'" in done.stderr
    assert "Traceback" not in done.stderr


PROGRAM = """
import numpy as np
from samri_runtime import Predictor

predictor = Predictor("samri-tiny")
rows, columns = np.mgrid[:90, :70]
slice_2d = 100.0 * ((columns - 30) ** 2 + (rows - 40) ** 2 < 400)
np.save("masks.npy", predictor.predict(predictor.encode(slice_2d), boxes=[[10, 20, 51, 61]]).masks)
"""
TOP_LEVEL = {"samri", "samri_runtime", "samri_export", "samri_training"}
