"""Whatever is imported of samri_export first: ONNX Runtime's telemetry is off before anything can import it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_IMPORTS = """
import os, sys
import {module}
assert "onnxruntime" in sys.modules or {lazy}
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1", os.environ.get("ORT_DISABLE_TELEMETRY")
"""


@pytest.mark.parametrize(
    ("module", "lazy"),
    [
        ("samri_export", True),
        ("samri_export.command", True),
        pytest.param("samri_export._onnx_writing", False, marks=pytest.mark.slow),
    ],
)
def test_it_is_off_before_onnxsim_imports_onnxruntime(module: str, lazy: bool, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS.format(module=module, lazy=lazy)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # With it on, an id of the device and a queue of events lie in the user's cache.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
