"""Several processes make the steps of one: gloo on the CPU, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam

from tests.support.stores import drawn_slices, write_store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def torchrun(processes: int, *command: object) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, *command]
    folders = [ROOT, ROOT / "training", os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in launch], env=environment, capture_output=True, text=True, timeout=300)


Found = list[dict[str, Any]]


def steps(folder: Path, processes: int, batch_size: int, faults: list[str]) -> dict[str, Found]:
    """What each process found, for each fault."""
    done = torchrun(processes, "-m", "tests.support.training_steps", folder, batch_size, *faults)
    assert done.returncode == 0, done.stderr
    return {
        fault: [torch.load(folder / f"{fault}-{rank}.pt", weights_only=True) for rank in range(processes)]
        for fault in faults
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """Two processes with batches of four."""
    return steps(tmp_path_factory.mktemp("two"), 2, 4, ["none", "spoiled", "stop", "broken"])


def test_two_processes_make_the_gradients_and_weights_of_one_with_the_whole_batch(
    two: dict[str, Found], tmp_path: Path
) -> None:
    (whole,) = steps(tmp_path, 1, 8, ["none"])["none"]
    # Three slices have no label that can be used: the count of valid samples differs between the two processes.
    assert whole["samples"] != [8, 8, 2] * 2
    for half in two["none"]:
        assert half["samples"] == whole["samples"]
        assert half["losses"] == pytest.approx(whole["losses"], rel=1e-6)
        assert torch.allclose(half["gradients"], whole["gradients"], rtol=1e-4, atol=1e-9)
        assert torch.allclose(half["weights"], whole["weights"], rtol=1e-7, atol=1e-9)
    assert torch.equal(two["none"][0]["weights"], two["none"][1]["weights"])


def test_a_bad_step_in_one_process_is_left_out_by_both(two: dict[str, Found]) -> None:
    first, second = two["spoiled"]
    assert first["bad"] == second["bad"]
    assert sum(first["bad"]) == 2  # Once an epoch.
    assert torch.equal(first["weights"], second["weights"])
    assert torch.isfinite(first["weights"]).all()


def test_a_bad_step_in_one_process_stops_both_when_asked_to(two: dict[str, Found]) -> None:
    first, second = two["stop"]
    assert first["steps"] == second["steps"]
    assert "not finite" in first["stopped"]
    assert first["stopped"] == second["stopped"]


def test_a_slice_that_one_process_cannot_read_stops_both_at_the_same_step(two: dict[str, Found]) -> None:
    first, second = two["broken"]
    assert first["steps"] == second["steps"]
    stops = sorted([first["stopped"], second["stopped"]])
    assert stops[0].startswith("StoppedWithOthersError")
    assert "shard-000005 is damaged" in stops[1]


def test_the_command_gives_the_same_run_under_torchrun(tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    store = write_store(tmp_path / "store", small_sam, drawn_slices(10))
    program = tmp_path / "train.py"  # What the installed script samri-train is.
    program.write_text("from samri_training.train import main\nif __name__ == '__main__':\n    main()\n")
    runs = []
    for processes, batch_size in ((1, 4), (2, 2)):
        options = ["--embedding-dir", store, "--checkpoint", checkpoint, "--save-dir", tmp_path / f"run{processes}"]
        options += ["--batch-size", batch_size, "--epochs", 2, "--lr", "1e-3", "--device", "cpu", "--json"]
        done = torchrun(processes, program, *options)
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)  # Of the first process alone.
        logs = json.loads((tmp_path / f"run{processes}" / "logs.json").read_text())
        runs.append([(entry.get("train_loss"), entry["val_dice"]) for entry in logs["epochs"]])
        assert outcome["best_dice"] == max(dice for _, dice in runs[-1])
    # float32: the weights of both agree in double precision, above.
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-3, abs=1e-3)


def test_a_mistake_is_told_once_and_ends_all_processes(tmp_path: Path, checkpoint: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text("from samri_training.train import main\nif __name__ == '__main__':\n    main()\n")
    options = ["--embedding-dir", tmp_path / "nothing", "--checkpoint", checkpoint, "--save-dir", tmp_path / "run"]
    done = torchrun(2, program, *options, "--device", "cpu")
    assert done.returncode != 0
    assert done.stderr.count("samri-train: error: ") == 1
