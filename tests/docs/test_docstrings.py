"""The examples in the docstrings of the public functions and classes do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.scans import affine, brain_like, save_nifti

# Module -> objects in it whose docstrings have an example.
EXAMPLES = {
    "samri.bundle": ["Bundle.open"],
    "samri.geometry": ["SliceView", "plane_view"],
    "samri.io._scan": ["read_scan"],
    "samri.prompts": ["Prompt.of"],
    "samri_runtime._embedding": ["Embedding"],
    "samri_runtime._predictor": ["Predictor"],
    "samri_runtime._sam_predictor": ["SamPredictor"],
    "samri_runtime.cache._cache": ["EmbeddingCache"],
    "samri_runtime.providers._opening": ["open_session"],
    "samri_runtime.segment": ["load_model", "segment"],
    "samri_runtime.session._session": ["Session"],
}


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with `scan.nii.gz`, as the examples name it."""
    monkeypatch.chdir(tmp_path)
    save_nifti(tmp_path / "scan.nii.gz", brain_like((50, 40, 20)), sform=affine(zooms=(1.0, 1.0, 2.0)))


@pytest.mark.usefixtures("scan")
@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_do_what_they_show(module: str, tmp_path: Path) -> None:
    loaded = importlib.import_module(module)
    names = {"folder": tmp_path / "cache", "image": np.zeros((60, 80), np.float32)}
    tests = [test for test in doctest.DocTestFinder().find(loaded, extraglobs=names) if test.examples]
    assert sorted(test.name.removeprefix(f"{module}.") for test in tests) == EXAMPLES[module]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        assert runner.run(test).failed == 0, test.name
