"""Cases measured in turn, several rounds of them, so that a machine that slows down slows all of them."""

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
from samri_runtime.bench._case import REFERENCE, Case
from samri_runtime.bench._scene import Scene

_WORKER = "samri_runtime.bench._worker"
_REPORT_S = 10.0


@dataclass(frozen=True)
class Effort:
    """How often things are done.

    Attributes:
        rounds: Processes a case, in turn with those of the other cases.
        encodes: Images in each process after the first one.
        decodes: Calls in each process for each batch size, after one that warms up.
        batches: Boxes in one call.
        limit: Seconds after which a process is given up.
    """

    rounds: int = 3
    encodes: int = 3
    decodes: int = 20
    batches: tuple[int, ...] = (1, 16)
    limit: float = 3600.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """How the masks of a case agree with those of fp32 on the CPU.

    Attributes:
        mean_dice: Over the boxes. Two empty masks agree.
        worst_dice: Of one box.
        logits: Largest difference of the low-resolution logits, over their range.
        telling: How many boxes have a mask that is neither empty nor the whole slice: only those can disagree much.
    """

    mean_dice: float
    worst_dice: float
    logits: float
    telling: int


@dataclass(frozen=True, eq=False)
class Answer:
    """Masks (B, H, W) and low-resolution logits (B, L, L)."""

    masks: npt.NDArray[np.bool_]
    low_res: npt.NDArray[np.float32]

    def agreement(self, reference: Answer) -> Agreement:
        """Compare with a reference."""
        dices = [dice(ours, theirs) for ours, theirs in zip(self.masks, reference.masks, strict=True)]
        span = max(float(np.ptp(reference.low_res)), 1e-12)
        difference = float(np.abs(self.low_res - reference.low_res).max())
        cover = reference.masks.mean(axis=(1, 2))
        telling = int(((cover > 0) & (cover < 1)).sum())
        return Agreement(float(np.mean(dices)), float(np.min(dices)), difference / span, telling)


@dataclass(eq=False)
class Sample:
    """What was measured of one case, over all rounds; seconds and bytes.

    Attributes:
        case: What was asked.
        ran: Graph to the provider that really ran.
        cold: From the start of the process to its first mask, for each round.
        first_encodes: The first image of each process.
        encodes: Later images.
        decodes: Batch size to the time of each call, from boxes to masks at the image's size.
        peak: Largest resident memory of the process, for each round.
        steady: Resident memory at its end.
        agreement: With fp32 on the CPU.
        notes: Plain lines of the runtime.
        error: Why it couldn't be measured.
    """

    case: Case
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
        """Take in what one process measured."""
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
    cases: Sequence[Case],
    scene: Scene,
    effort: Effort | None = None,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Sample]:
    """Measure cases on a bundle. The first sample is fp32 on the CPU, asked for or not: the others' masks are compared
    with its.

    Args:
        model: A bundle's folder, or a model's name.
        cases: What to measure.
        scene: What to ask.
        effort: How often.
        progress: Gets plain lines.

    Raises:
        ProviderError: The bundle can't run on the CPU in fp32.
    """
    effort = effort or Effort()
    samples = [Sample(case) for case in _each_once([REFERENCE, *cases])]
    answers: dict[int, Answer] = {}
    with tempfile.TemporaryDirectory(prefix="samri-bench-", ignore_cleanup_errors=True) as folder:
        np.savez(Path(folder) / "scene.npz", image=scene.image, boxes=scene.boxes)
        for turn in range(1, effort.rounds + 1):
            for place, sample in enumerate(samples):
                if sample.error is not None:
                    continue
                progress(f"round {turn} of {effort.rounds}: {sample.case}")
                result = _run(Path(folder), str(model), sample.case, effort, progress)
                if "error" in result:
                    if place == 0:
                        raise ProviderError(f"{model} can't be measured: {result['error']}")
                    sample.error = result["error"]
                    continue
                sample.add(result)
                answers.setdefault(place, _answer(Path(folder) / "result.npz", scene))
    for place, answer in answers.items():
        samples[place].agreement = answer.agreement(answers[0])
    return samples


def _ended(command: Sequence[str], limit: float, waiting: Callable[[float], None]) -> tuple[int | None, str]:
    """Run a process; its code, None when it was killed after `limit` seconds, and its stderr."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=_environment()
    )
    with process:
        try:
            while (left := started + limit - time.monotonic()) > 0:
                try:
                    stderr = process.communicate(timeout=min(left, _REPORT_S))[1]
                    return process.returncode, stderr
                except subprocess.TimeoutExpired:
                    waiting(time.monotonic() - started)
            return None, ""
        finally:
            process.kill()


def _run(
    folder: Path, model: str, case: Case, effort: Effort, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    request, result = folder / "request.json", folder / "result.json"
    result.unlink(missing_ok=True)
    asked = {
        "model": model,
        "case": case.to_json(),
        "scene": str(folder / "scene.npz"),
        "encodes": effort.encodes,
        "decodes": effort.decodes,
        "batches": effort.batches,
        "started": time.time(),
    }
    request.write_text(json.dumps(asked), encoding="utf-8")
    command = [sys.executable, "-m", _WORKER, str(request), str(result)]
    returncode, stderr = _ended(command, effort.limit, lambda waited: progress(f"{case}: {waited:.0f} s so far"))
    if returncode is None:
        return {"error": f"gave no result within {effort.limit:g} s"}
    if result.is_file():
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured
    said = (stderr.strip().splitlines() or ["without a word"])[-1]
    return {"error": f"its process ended with {returncode}: {said}"}


def _environment() -> dict[str, str]:
    """This process's, with the folders that Python imports from, as a notebook or a checkout may have extended them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def _each_once(cases: Sequence[Case]) -> list[Case]:
    kept: list[Case] = []
    for case in cases:
        if case not in kept:
            kept.append(case)
    return kept


def _answer(path: Path, scene: Scene) -> Answer:
    with np.load(path) as saved:
        masks = np.unpackbits(saved["masks"], axis=-1, count=scene.image.shape[1]).astype(bool)
        return Answer(masks, saved["low_res"])
