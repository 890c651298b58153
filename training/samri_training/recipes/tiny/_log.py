"""The training's log: means over a few steps, a line of JSON each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class Log:
    """Written as the training goes; lines after the state that a run goes on from are dropped."""

    def __init__(self, file: Path, step: int, every: int, progress: Callable[[str], None]) -> None:
        self._file, self._every, self._progress = file, every, progress
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        file.write_text("".join(f"{line}\n" for line in kept))
        self._values: list[dict[str, float]] = []
        self._started = time.perf_counter()

    def add(self, step: int, side: int, rate: float, values: dict[str, float]) -> None:
        """Take in what a step said; `step` counts those done."""
        self._values.append(values)
        if step % self._every:
            return
        names = sorted({name for entry in self._values for name in entry})
        means = {name: _mean([entry[name] for entry in self._values if name in entry]) for name in names}
        seconds = (time.perf_counter() - self._started) / len(self._values)
        line = {"step": step, "side": side, "lr": round(rate, 7)} | means | {"seconds_per_step": round(seconds, 3)}
        with self._file.open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._progress("  ".join(f"{name} {value}" for name, value in line.items()))
        self._values, self._started = [], time.perf_counter()


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
