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


@pytest.mark.exhaustive
def test_peers_answer_with_the_same_masks(tmp_path: Path) -> None:
    table = run("peers.py", "--small", "--rounds", 1, "--json", tmp_path / "peers.json")
    report = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    ours = {"samri", "samri, on a new image", "samri, on a new image, asked once"}
    assert set(report["prompts"]) == {*ours, "Meta's ONNX decoder", "torch SamPredictor"}
    for figures in report["prompts"].values():
        assert figures["dice"] > 0.999
        assert figures["logits off"] < 1e-3
        assert len(figures["one box"]) == len(figures["16 boxes"]) == 1
    assert table.count("| samri |") == 1


@pytest.mark.exhaustive
def test_a_gpus_candidates_give_the_same_masks_on_the_cpu(tmp_path: Path) -> None:
    table = run("gpu_peers.py", "--small", "--device", "cpu", "--rounds", 1, "--json", tmp_path / "gpu.json")
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert set(report["candidates"]) == {"torch fp32", "torch bf16", "samri fp32", "samri fp16"}
    assert min(report["candidates"]["samri fp32"]["dice"]) > 0.999
    assert report["candidates"]["samri fp32"]["embedding off"] < 1e-4
    for name, figures in report["candidates"].items():
        assert [len(figures[key]) for key in ("image", "one box", "16 boxes")] == [1, 1, 1]
        assert f"| {name} |" in table


@pytest.mark.exhaustive
def test_encoders_give_the_same_embedding(tmp_path: Path) -> None:
    table = run("encoders.py", "--small", "--rounds", 1, "--images", 2, "--json", tmp_path / "encoders.json")
    report = json.loads((tmp_path / "encoders.json").read_text(encoding="utf-8"))
    assert set(report["encoders"]) == {"plain export", "samri", "samri int8", "torch SamPredictor"}
    for name, figures in report["encoders"].items():
        # The small model's weights are random, and so is what int8 makes of them: another embedding, but not far off.
        assert (1e-4 < figures["embedding off"] < 0.2) if name == "samri int8" else figures["embedding off"] < 1e-4
        assert [len(figures[key]) for key in ("first", "later", "peak")] == [1, 1, 1]
        assert f"| {name} |" in table


@pytest.mark.slow
def test_session_settings_are_compared(bundle: Path, tmp_path: Path) -> None:
    run("sessions.py", "--model", bundle, "--rounds", 1, "--encoder", "--json", tmp_path / "sessions.json")
    report = json.loads((tmp_path / "sessions.json").read_text(encoding="utf-8"))
    assert len(report["threads"]) == 5
    assert all(len(column) == 4 for column in report["threads"].values())
    assert set(report["memory"]) == {"default", "no patterns", "no arena", "arena given back"}
    for found in report["memory"].values():
        assert len(found["seconds"]) == 3
        assert 0 < found["opened"] <= found["peak"] * 1.01
