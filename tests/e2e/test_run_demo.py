"""`make demo`: samri-run as a process on real MRI and on a drawn slice, with the model that comes with SAMRI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
BLOCKED = ("torch", "torchvision", "onnx", "onnxsim", "segment_anything", "monai", "scipy", "matplotlib", "skimage")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed, in processes that can import nothing but what `samri[cpu,io]` brings."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))\n")
    result = subprocess.run(
        [sys.executable, DEMO, folder / "demo"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("a demonstration, not for clinical use") == 3
    return folder / "demo", result.stdout


def test_it_needs_no_torch_and_says_so(demo):
    assert demo[1].startswith("PyTorch is not installed.\n")


def test_it_says_how_long_each_slice_took(demo):
    assert len(re.findall(r"^\d+\.\d s from the start of the process to masks", demo[1], re.MULTILINE)) == 3


@pytest.mark.parametrize(("plane", "axis", "index", "objects"), [("axial", 2, 86, 5), ("sagittal", 0, None, 4)])
def test_the_masks_lie_on_the_scan(demo, plane, axis, index, objects):
    folder, _ = demo
    scan = nib.load(folder / "t1.nii.gz")
    mask = nib.load(folder / plane / "t1_seg_.nii.gz")
    assert mask.shape == scan.shape == (197, 233, 189)
    np.testing.assert_array_equal(mask.affine, scan.affine)
    labels = np.asarray(mask.dataobj)
    assert 1 <= labels.max() <= objects
    labelled = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis})))
    assert len(labelled) == 1
    assert index is None or labelled[0] == index


def test_it_leaves_pictures_and_names_them(demo):
    folder, printed = demo
    for name in ("axial/t1", "sagittal/t1", "synthetic/synthetic"):
        overlay = folder / f"{name}_overlay.png"
        assert str(overlay) in printed
        with Image.open(overlay) as picture:
            assert picture.mode == "RGB"
            assert min(picture.size) > 700


def test_the_drawn_slices_truth_is_compared(demo):
    folder, printed = demo
    shares = [float(share) for share in re.findall(r"^  ([01]\.\d{3})  \w", printed, re.MULTILINE)]
    assert len(shares) == 4
    found = np.asarray(nib.load(folder / "synthetic" / "synthetic_seg_.nii.gz").dataobj)[0]
    rows, columns = np.mgrid[:256, :256]
    # The small disk has the second box, and nothing is drawn over it.
    disk = (columns - 165) ** 2 + (rows - 95) ** 2 <= 14**2
    expected = 2 * (disk & (found == 2)).sum() / (disk.sum() + (found == 2).sum())
    assert shares[1] == pytest.approx(expected, abs=6e-4)


def test_help_is_no_folder(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, DEMO, "--help"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert result.returncode == 0
    assert "folder" in result.stdout
    assert not list(tmp_path.iterdir())
