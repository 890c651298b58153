"""The proof that docs/bundle.md suffices: a host that shares no code with samri gives the same masks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity import agree, covers_a_part, picture
from samri_runtime import Predictor

HOST = Path(__file__).parents[2] / "examples" / "python_minimal" / "segment.py"


def test_it_is_short_and_imports_numpy_and_onnxruntime_alone() -> None:
    source = HOST.read_text()
    assert len(source.splitlines()) < 80
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.mark.parametrize("shape", [(180, 120), (90, 200), (300, 260)])
def test_its_mask_is_predictors(bundle: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    scan = picture(shape).astype(np.float32) * 3.7 + 100
    height, width = shape
    box = [0.21 * width, 0.13 * height, 0.83 * width, 0.77 * height]
    np.save(tmp_path / "scan.npy", scan)
    arguments = [str(bundle), str(tmp_path / "scan.npy"), *map(str, box), str(tmp_path / "mask.npy")]
    subprocess.run([sys.executable, str(HOST), *arguments], check=True, capture_output=True)
    predictor = Predictor(bundle, provider="cpu")
    expected = predictor.predict(predictor.encode(scan), boxes=[box]).masks
    covers_a_part(expected[0])
    agree(np.load(tmp_path / "mask.npy")[None].astype(np.float32), expected.astype(np.float32))
