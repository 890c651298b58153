"""What the pages' commands and examples are given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.scans import OBLIQUE, brain_like, save_nifti


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, `bundle`, and a scan of 150 x 170 x 100 voxels, `scan.nii.gz`."""
    shutil.copytree(bundle, tmp_path / "bundle")
    save_nifti(tmp_path / "scan.nii.gz", brain_like((150, 170, 100)), sform=OBLIQUE)
    monkeypatch.chdir(tmp_path)
    return tmp_path
