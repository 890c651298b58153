from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import Sam

from samri.model import load_checkpoint
from store_factory import drawn_slices, write_store

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow

PROGRAM = "import torch; torch.set_num_threads(1); from samri_training.train import main; main()"


def start(*options: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "training")}
    command = [sys.executable, "-c", PROGRAM, *map(str, options)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*options: object) -> None:
    process = start(*options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def test_a_run_killed_at_any_epoch_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, checkpoint: Path, small_sam: Sam
) -> None:
    write_store(tmp_path / "store" / "training", small_sam, drawn_slices(12))
    write_store(tmp_path / "store" / "validation", small_sam, drawn_slices(3, seed=2))
    options = ["--embedding-dir", tmp_path / "store", "--checkpoint", checkpoint, "--epochs", 30, "--batch-size", 4]
    options += ["--lr", "1e-3", "--prompts", "alternate", "--scheduler", "cosine", "--ema", 0.9, "--device", "cpu"]
    finish(*options, "--save-dir", tmp_path / "whole")

    killed = tmp_path / "killed"
    restarts = 0
    process = start(*options, "--save-dir", killed)
    for epoch in (2, 11, 19):
        _wait_for(killed, epoch, process)
        # Not at an epoch's end but somewhere in the next ones.
        time.sleep(0.03 * epoch % 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        restarts += process.returncode == -signal.SIGKILL
        process = start("--resume", killed)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert restarts == 3

    for name in ("last.pth", "best.pth"):
        one, two = (load_checkpoint(folder / name).sam.state_dict() for folder in (tmp_path / "whole", killed))
        assert all(torch.equal(one[key], two[key]) for key in one), name


def _wait_for(folder: Path, epoch: int, process: subprocess.Popen[str]) -> None:
    """Until `logs.json` has that epoch; it appears as a whole."""
    logs = folder / "logs.json"
    for _ in range(6000):
        if logs.exists() and json.loads(logs.read_text())["epochs"][-1]["epoch"] >= epoch:
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)
    raise AssertionError(f"epoch {epoch} did not come")
