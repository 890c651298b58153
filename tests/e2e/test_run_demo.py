"""`make demo`: a checkpoint, the two real commands as processes, and a picture of real MRI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.slow
def test_the_demo_leaves_an_overlay_and_says_that_its_model_is_untrained(tmp_path):
    result = subprocess.run(
        [sys.executable, DEMO, tmp_path / "demo"], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert "The masks below mean nothing" in result.stdout
    overlay = tmp_path / "demo" / "results" / "t1_overlay.png"
    assert str(overlay) in result.stdout
    with Image.open(overlay) as picture:
        assert picture.mode == "RGB"
        assert min(picture.size) > 700
    scan = nib.load(tmp_path / "demo" / "t1.nii.gz")
    mask = nib.load(tmp_path / "demo" / "results" / "t1_seg_.nii.gz")
    assert mask.shape == scan.shape == (197, 233, 189)
    np.testing.assert_array_equal(mask.affine, scan.affine)
    labelled = np.flatnonzero(np.asarray(mask.dataobj).any(axis=(0, 1)))
    assert labelled.tolist() == [90]
