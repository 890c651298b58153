"""`benchmarks/cached_run.py` works; what it measures is no test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_the_benchmark_of_cached_runs_works_on_the_small_model(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "cached_run.py"), "--small", "--rounds", "1"]
    command += ["--encodings", "1", "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert len(report["seconds"]) == 4
    assert all(len(values) == 1 for values in report["seconds"].values())
    assert report["provider"] == {"decoder": "cpu"}
    # The peers compute the same mask, so that the same work is compared.
    assert 0.05 < report["mask_share"] < 0.95
    assert min(report["dice"].values()) > 0.999
    for name in report["seconds"]:
        assert name in done.stdout
