"""Some steps of training under torchrun, on embeddings in memory; run as a program by `test_train_parallel.py`.

    python -m tests.support.training_steps OUTPUT BATCH_SIZE FAULT ...

Writes the first step's gradients and the last weights of every process to OUTPUT/<fault>-<rank>.pt. Faults: `none`; an
embedding that is `spoiled` by a NaN; the same where bad steps mean `stop`; a slice that can't be read, `broken`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samri.errors import InputError, SamriError
from samri.model import SamDecoder
from samri.preprocessing import profile
from samri_training.train import Settings
from samri_training.train._processes import Processes, joined_processes
from samri_training.train._samples import BatchRequests, SamplingConfig, TrainingBatches
from samri_training.train._step import Training
from tests.support.sams import seeded_sam
from tests.support.training_reference import doubled

SAMPLES = 18
EPOCHS = 2


class MemorySlices:
    """Slices with two labels, of which three have none; slice 5 has the fault that is asked for."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        rng = np.random.default_rng(index)
        features = rng.standard_normal((64, 16, 16)).astype(np.float32)
        mask = np.zeros((100, 90), np.uint8)
        if index not in (3, 4, 11):
            mask[10:50, 20:60] = 1
            mask[60:90, 30 + index : 80] = 2
        if index == 5 and self._fault in ("spoiled", "stop"):
            features[0, 0, 0] = np.nan
        if index == 5 and self._fault == "broken":
            raise InputError("shard-000005 is damaged")
        return Stored(features, mask)


class Stored:
    def __init__(self, features: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> None:
        self.features, self.mask = features, mask


def run(output: Path, batch_size: int, fault: str, processes: Processes) -> None:
    settings = Settings(
        batch_size=batch_size, lr=1e-3, prompts="alternate", bad_steps="stop" if fault == "stop" else "skip"
    )
    sam = doubled(seeded_sam())
    requests = BatchRequests(range(SAMPLES), settings, processes.rank, processes.count)
    training = Training(SamDecoder(sam), settings, processes, requests.steps * EPOCHS)
    batches = TrainingBatches(MemorySlices(fault), SamplingConfig.of(profile("samri"), 128, (64, 16, 16), settings))
    gradients, reports = None, []
    try:
        for epoch in range(1, EPOCHS + 1):
            requests.epoch = epoch
            for request in requests:
                reports.append(training.step([batches[request]]))
                if gradients is None:
                    parts = [parameter.grad for parameter in training.parameters.values()]
                    gradients = torch.cat([part.flatten().clone() for part in parts if part is not None])
        stopped = ""
    except SamriError as error:
        stopped = f"{type(error).__name__}: {error}"
    weights = torch.cat([parameter.detach().flatten() for parameter in training.parameters.values()])
    found = {
        "gradients": gradients,
        "weights": weights,
        "samples": [report.samples for report in reports],
        "losses": [report.loss for report in reports],
        "bad": [report.bad for report in reports],
        "steps": training.step_number,
        "stopped": stopped,
    }
    torch.save(found, output / f"{fault}-{processes.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_processes("cpu") as place:
        for each in sys.argv[3:]:
            run(Path(sys.argv[1]), int(sys.argv[2]), each, place)
