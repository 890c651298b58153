"""The training's log: means over a few steps, a line of JSON each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


class Log:
    """Log of the training; lines after the state that a run resumes from are dropped."""

    def __init__(self, file: Path, step: int, every: int, progress: Callable[[str], None]) -> None:
        self._file, self._every, self._progress = file, every, progress
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        file.write_text("".join(f"{line}\n" for line in kept))
        self._values: list[Mapping[str, Tensor]] = []
        self._started = time.perf_counter()

    def add(self, step: int, side: int, rate: float, values: Mapping[str, Tensor]) -> None:
        """Take in what a step said, NaN where it had nothing to say; `step` counts those done.

        The numbers stay on their device until there is a line to write: a GPU that is asked after each step waits for
        the CPU to start the next one.
        """
        self._values.append(values)
        if step % self._every:
            return
        means = {name: float(torch.stack([entry[name] for entry in self._values]).nanmean()) for name in sorted(values)}
        said = {name: round(mean, 4) for name, mean in means.items() if not math.isnan(mean)}
        seconds = (time.perf_counter() - self._started) / len(self._values)
        line = {"step": step, "side": side, "lr": round(rate, 7)} | said | {"seconds_per_step": round(seconds, 3)}
        with self._file.open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._progress("  ".join(f"{name} {value}" for name, value in line.items()))
        self._values, self._started = [], time.perf_counter()
