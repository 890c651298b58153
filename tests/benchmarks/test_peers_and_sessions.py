"""The comparisons with peers and of session settings run on the small model; what they time is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.slow
def test_peers_answer_with_the_same_masks(tmp_path: Path) -> None:
    table = run("peers.py", "--small", "--rounds", 1, "--images", 1, "--json", tmp_path / "peers.json")
    report = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert set(report["prompts"]) == {"samri", "Meta's ONNX decoder", "torch SamPredictor"}
    for figures in report["prompts"].values():
        assert figures["dice"] > 0.999
        assert figures["logits off"] < 1e-3
        assert len(figures["one box"]) == len(figures["16 boxes"]) == 1
    assert set(report["images"]) == {"samri", "torch SamPredictor"}
    for figures in report["images"].values():
        assert figures["embedding off"] < 1e-4
        assert (len(figures["first"]), len(figures["later"])) == (1, 2)
    assert table.count("| samri |") == 2


@pytest.mark.slow
def test_session_settings_are_compared(bundle: Path, tmp_path: Path) -> None:
    run("sessions.py", "--model", bundle, "--rounds", 1, "--encoder", "--json", tmp_path / "sessions.json")
    report = json.loads((tmp_path / "sessions.json").read_text(encoding="utf-8"))
    assert len(report["threads"]) == 5
    assert all(len(column) == 3 for column in report["threads"].values())
    assert set(report["memory"]) == {"default", "no patterns", "no arena", "arena given back"}
    for found in report["memory"].values():
        assert len(found["seconds"]) == 3
        assert 0 < found["opened"] <= found["peak"] * 1.01
