"""A small scan and the shipped model, for sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import samri
from samri.io import Scan
from samri_runtime import Predictor
from tests.support.scans import affine, save_nifti


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """A bright tube along the last axis, in noise."""
    rows, columns, slices = np.ogrid[:40, :50, :12]
    inside = ((rows - 20) / 11) ** 2 + ((columns - 25) / (12 + slices / 6)) ** 2 < 1
    voxels = (inside * 700 + np.random.default_rng(0).normal(80, 15, inside.shape)).astype(np.int16)
    path = tmp_path_factory.mktemp("session") / "scan.nii.gz"
    return samri.read_scan(save_nifti(path, voxels, sform=affine(zooms=(1.0, 1.5, 2.0))))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return samri.load_model("samri-tiny", provider="cpu", cache=tmp_path_factory.mktemp("embeddings"))


@pytest.fixture
def beside(scan: Scan, tmp_path: Path) -> Path:
    """A folder with a copy of the scan, for sessions that look for it there."""
    (tmp_path / scan.path.name).write_bytes(scan.path.read_bytes())
    return tmp_path
