from __future__ import annotations

import itertools
import json
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam

from samri.model import load_checkpoint
from samri_training.train import Settings, main, train
from samri_training.train._starting import LOCK
from tests.support.commands import call, start
from tests.support.stores import drawn_slices, write_store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]


def test_a_run_killed_at_any_epoch_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, checkpoint: Path, small_sam: Sam
) -> None:
    write_store(tmp_path / "store" / "training", small_sam, drawn_slices(12))
    write_store(tmp_path / "store" / "validation", small_sam, drawn_slices(3, seed=2))
    options = ["--embedding-dir", tmp_path / "store", "--checkpoint", checkpoint, "--epochs", 16, "--batch-size", 4]
    options += ["--lr", "1e-3", "--prompts", "alternate", "--scheduler", "cosine", "--ema", 0.9, "--device", "cpu"]
    assert call(main, *options, "--save-dir", tmp_path / "whole").exit_code == 0

    killed = tmp_path / "killed"
    restarts = 0
    process = start(main, *options, "--save-dir", killed)
    for epoch in (1, 4, 7):
        _wait_for(killed, epoch, process)
        # Not at an epoch's end but somewhere in the next ones.
        time.sleep(0.03 * epoch % 0.1)
        process.kill()
        process.join()
        restarts += process.exitcode == -signal.SIGKILL
        process = start(main, "--resume", killed)
    process.join(300)
    assert process.exitcode == 0
    assert restarts == 3

    for name in ("last.pth", "best.pth"):
        one, two = (load_checkpoint(folder / name).sam.state_dict() for folder in (tmp_path / "whole", killed))
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_a_run_that_dies_at_any_rename_is_resumed_to_the_same_weights(
    tmp_path: Path, checkpoint: Path, small_sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "store" / "training", small_sam, drawn_slices(3))
    write_store(tmp_path / "store" / "validation", small_sam, drawn_slices(1, seed=2))
    # Not what is asked here, and slow on a busy machine.
    monkeypatch.setattr("samri_training.train._run.write_environment", lambda path: None)
    monkeypatch.setattr("samri_training.train._run.git_commit", lambda: "none")

    def settings(folder: Path) -> Settings:
        return Settings(
            embedding_dir=tmp_path / "store",
            checkpoint=checkpoint,
            save_dir=folder,
            epochs=2,
            batch_size=3,
            lr=1e-3,
            ema=0.9,
            device="cpu",
        )

    train(settings(tmp_path / "whole"), say=lambda line: None)
    wanted = [torch.load(tmp_path / "whole" / name, weights_only=True) for name in ("last.pth", "best.pth")]
    for deadly in range(1, 100):
        folder = tmp_path / f"killed{deadly}"
        if _dies_at_rename(deadly, settings(folder)) == 0:
            break
        if (folder / "last.pth").exists():
            train(settings(folder), resume=folder, say=lambda line: None)
        else:
            train(settings(folder), say=lambda line: None)
        last, best = (torch.load(folder / name, weights_only=True) for name in ("last.pth", "best.pth"))
        for one, two in ((last["model"], wanted[0]["model"]), (best, wanted[1])):
            assert all(torch.equal(one[name], two[name]) for name in one), deadly
        assert (last["epoch"], len(last["history"])) == (2, 3)
        assert not (folder / LOCK).exists()
    assert deadly >= 9  # args.json, the logs and last.pth of three epochs, best.pth at least once, the curves.


def _dies_at_rename(deadly: int, settings: Settings) -> int:
    """The exit status of a process of its own that trains, and is gone instead of its rename of that number."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        renames, replace = itertools.count(1), os.replace

        def rename(*paths: Any, **options: Any) -> None:
            if next(renames) == deadly:
                os._exit(9)
            replace(*paths, **options)

        os.replace = rename  # type: ignore[assignment]
        train(settings, say=lambda line: None)
        status = 0
    finally:
        os._exit(status)


def _wait_for(folder: Path, epoch: int, process: BaseProcess) -> None:
    """Until `logs.json` has that epoch; it appears as a whole."""
    logs = folder / "logs.json"
    for _ in range(6000):
        if logs.exists() and json.loads(logs.read_text())["epochs"][-1]["epoch"] >= epoch:
            return
        assert process.is_alive()
        time.sleep(0.01)
    raise AssertionError(f"epoch {epoch} did not come")
