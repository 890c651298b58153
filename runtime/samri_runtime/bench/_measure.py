"""Measuring cases in turn, in several rounds, so that a machine that slows down slows all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import ProviderError
from samri.metrics import dice
from samri_runtime.bench._case import REFERENCE, BenchCase, Scene

_WORKER = "samri_runtime.bench._worker"
_REPORT_S = 10.0


@dataclass(frozen=True)
class Repeats:
    """How often each case is measured.

    Attributes:
        rounds: Processes per case, in turn with those of the other cases.
        encodes: Images per process after the first one.
        decodes: Calls per process and batch size, after one to warm up.
        batches: Numbers of boxes per call.
        limit: Seconds after which a process is stopped.
    """

    rounds: int = 3
    encodes: int = 3
    decodes: int = 20
    batches: tuple[int, ...] = (1, 16)
    limit: float = 3600.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of the masks of a case with those of fp32 on the CPU.

    Attributes:
        mean_dice: Mean Dice over the boxes; 1 for two empty masks.
        worst_dice: Lowest Dice of a box.
        logits: Largest difference of the low-resolution logits, relative to their range.
        informative: Number of boxes whose mask is neither empty nor the whole slice: only those can differ much.
    """

    mean_dice: float
    worst_dice: float
    logits: float
    informative: int


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks (B, H, W) and low-resolution logits (B, L, L) of one case."""

    masks: npt.NDArray[np.bool_]
    low_res: npt.NDArray[np.float32]

    def agreement(self, reference: Masks) -> Agreement:
        """Compare with a reference."""
        dices = [dice(ours, theirs) for ours, theirs in zip(self.masks, reference.masks, strict=True)]
        span = max(float(np.ptp(reference.low_res)), 1e-12)
        difference = float(np.abs(self.low_res - reference.low_res).max())
        cover = reference.masks.mean(axis=(1, 2))
        informative = int(((cover > 0) & (cover < 1)).sum())
        return Agreement(float(np.mean(dices)), float(np.min(dices)), difference / span, informative)


@dataclass(eq=False)
class Measurements:
    """The measurements of one case, over all rounds; in seconds and bytes.

    Attributes:
        case: The case.
        ran: The provider that each graph ran on, by role.
        cold: Time from the start of the process to its first mask, per round.
        first_encodes: Time of the first image of each process.
        encodes: Times of later images.
        decodes: Time of each call from boxes to masks at the size of the image, by batch size.
        peak: Largest resident memory of the process, per round.
        steady: Resident memory at its end, per round.
        agreement: Agreement of its masks with fp32 on the CPU.
        notes: Messages of the runtime.
        error: Why it couldn't be measured, or None.
    """

    case: BenchCase
    ran: Mapping[str, str] = field(default_factory=dict)
    cold: list[float] = field(default_factory=list)
    first_encodes: list[float] = field(default_factory=list)
    encodes: list[float] = field(default_factory=list)
    decodes: dict[int, list[float]] = field(default_factory=dict)
    peak: list[int] = field(default_factory=list)
    steady: list[int] = field(default_factory=list)
    agreement: Agreement | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None

    def add(self, result: Mapping[str, Any]) -> None:
        """Add the measurements of one process."""
        self.ran, self.notes = result["ran"], tuple(result["notes"])
        self.cold.append(result["cold"])
        self.first_encodes.append(result["first_encode"])
        self.encodes += result["encodes"]
        for batch, seconds in result["decodes"].items():
            self.decodes.setdefault(int(batch), []).extend(seconds)
        for name in ("peak", "steady"):
            if result[name] is not None:
                getattr(self, name).append(result[name])


def measure(
    model: str | Path,
    cases: Sequence[BenchCase],
    scene: Scene,
    repeats: Repeats | None = None,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Measurements]:
    """Measure cases on a bundle. The first sample is always fp32 on the CPU: all masks are compared with its.

    Args:
        model: A bundle's folder, or a model's name.
        cases: The cases.
        scene: The slice and boxes.
        repeats: How often each case is measured.
        progress: Called with a line of text at each step.

    Raises:
        ProviderError: The bundle can't run on the CPU in fp32.
    """
    repeats = repeats or Repeats()
    samples = [Measurements(case) for case in _each_once([REFERENCE, *cases])]
    masks: dict[int, Masks] = {}
    with tempfile.TemporaryDirectory(prefix="samri-bench-", ignore_cleanup_errors=True) as folder:
        np.savez(Path(folder) / "scene.npz", image=scene.image, boxes=scene.boxes)
        for turn in range(1, repeats.rounds + 1):
            for place, sample in enumerate(samples):
                if sample.error is not None:
                    continue
                progress(f"round {turn} of {repeats.rounds}: {sample.case}")
                result = _run(Path(folder), str(model), sample.case, repeats, progress)
                if "error" in result:
                    if place == 0:
                        raise ProviderError(f"{model} can't be measured: {result['error']}")
                    sample.error = result["error"]
                    continue
                sample.add(result)
                masks.setdefault(place, _masks(Path(folder) / "result.npz", scene))
    for place, of_case in masks.items():
        samples[place].agreement = of_case.agreement(masks[0])
    return samples


def _ended(command: Sequence[str], limit: float, waiting: Callable[[float], None]) -> tuple[int | None, str]:
    """Run a process; returns its exit code, or None if it was killed after `limit` seconds, and its stderr."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=_environment()
    )
    with process:
        try:
            while (remaining := started + limit - time.monotonic()) > 0:
                try:
                    stderr = process.communicate(timeout=min(remaining, _REPORT_S))[1]
                    return process.returncode, stderr
                except subprocess.TimeoutExpired:
                    waiting(time.monotonic() - started)
            return None, ""
        finally:
            process.kill()


def _run(
    folder: Path, model: str, case: BenchCase, repeats: Repeats, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    request, result = folder / "request.json", folder / "result.json"
    result.unlink(missing_ok=True)
    content = {
        "model": model,
        "case": case.to_json(),
        "scene": str(folder / "scene.npz"),
        "encodes": repeats.encodes,
        "decodes": repeats.decodes,
        "batches": repeats.batches,
        "started": time.time(),
    }
    request.write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-m", _WORKER, str(request), str(result)]
    returncode, stderr = _ended(command, repeats.limit, lambda waited: progress(f"{case}: {waited:.0f} s so far"))
    if returncode is None:
        return {"error": f"gave no result within {repeats.limit:g} s"}
    if result.is_file():
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured
    message = (stderr.strip().splitlines() or ["it printed no error"])[-1]
    return {"error": f"its process ended with exit code {returncode}: {message}"}


def _environment() -> dict[str, str]:
    """This process's environment, with its import path, which a notebook or a checkout may have extended."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _each_once(cases: Sequence[BenchCase]) -> list[BenchCase]:
    distinct: list[BenchCase] = []
    for case in cases:
        if case not in distinct:
            distinct.append(case)
    return distinct


def _masks(path: Path, scene: Scene) -> Masks:
    with np.load(path) as saved:
        masks = np.unpackbits(saved["masks"], axis=-1, count=scene.image.shape[1]).astype(bool)
        return Masks(masks, saved["low_res"])
