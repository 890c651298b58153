"""Records of a run: entries of `logs.json`, progress, the outcome, `args.json`, `environment.txt`, curves, events."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from samri import __version__
from samri.errors import MissingDependencyError
from samri.staging import staged_file
from samri_training.train._last import BEST, LAST
from samri_training.train._step import StepResult
from samri_training.train._validation import Validation


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Plain JSON, appearing as a whole; a number that isn't finite becomes null."""
    with staged_file(path) as stage:
        text = json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"
        stage.write_text(text, encoding="utf-8", newline="\n")


def write_environment(path: Path) -> None:
    """Versions, devices and the state of the source, as plain text."""
    with staged_file(path) as stage:
        stage.write_text("\n".join([*_facts(), "", *_installed()]) + "\n", encoding="utf-8", newline="\n")


def git_commit() -> str:
    """The commit of the source that runs, `+changes` when it was edited; or why there is none to name."""
    here = Path(__file__).resolve().parent
    commands = (
        ["git", "rev-parse", "HEAD"],
        ["git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "."],
    )
    answers = []
    for command in commands:
        try:
            process = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown (git can't be run)"
        if process.returncode:
            return f"none (samri {__version__} is not run from a git checkout)"
        answers.append(process.stdout.strip())
    return answers[0] + ("+changes" if answers[1] else "")


class Curves:
    """Training and validation loss, validation Dice and learning rate by epoch, as a PNG."""

    _SECONDS = 60.0  # Drawing takes longer than a small run's epoch.

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drawn = time.monotonic()

    def draw_now_and_then(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Draw, unless that was done within the last minute."""
        if time.monotonic() - self._drawn > self._SECONDS:
            self.draw(history)

    def draw(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Draw.

        Raises:
            OutputError: The file can't be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.4), layout="constrained")
        axes = figure.subplots(1, 3)
        panels = (
            ("loss", (("train_loss", "training"), ("val_loss", "validation"))),
            ("Dice", (("val_dice", "validation"),)),
            ("learning rate", (("lr", "AdamW"),)),
        )
        for axis, (title, lines) in zip(axes, panels, strict=True):
            for key, label in lines:
                points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
                if points:
                    axis.plot(*zip(*points, strict=True), marker=".", label=label)
                    axis.legend()
            axis.set(title=title, xlabel="epoch")
            axis.grid(alpha=0.3)
        with staged_file(self._path) as stage:
            figure.savefig(stage, dpi=110)
        self._drawn = time.monotonic()


class Events:
    """TensorBoard events, or nothing when they weren't asked for.

    Raises:
        MissingDependencyError: TensorBoard isn't installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError("--tensorboard needs a package: pip install tensorboard") from error
            self._writer = SummaryWriter(str(folder))

    def add(self, entry: Mapping[str, Any]) -> None:
        """The numbers of one epoch."""
        if self._writer is None:
            return
        for name, value in entry.items():
            if name != "epoch" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, entry["epoch"])
        self._writer.flush()


def _facts() -> list[str]:
    facts = {
        "samri": __version__,
        "git commit": git_commit(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "rocm": torch.version.hip or "none",
        "cpu threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts |= {f"gpu {index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return [f"{name}: {value}" for name, value in facts.items()]


def _installed() -> list[str]:
    packages = {(each.metadata["Name"] or "", each.version) for each in importlib.metadata.distributions()}
    return sorted((f"{name}=={version}" for name, version in packages if name), key=str.lower)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    if isinstance(values, float) and (values != values or abs(values) == float("inf")):
        return None
    return values


Log = Callable[[str], None]
Entry = dict[str, Any]


def trained_entry(epoch: int, reports: Sequence[StepResult], lr: float, seconds: float) -> Entry:
    """One epoch of training. Without a step that moved, its loss is None."""
    good = [report for report in reports if report.moved]
    samples = sum(report.samples for report in good)
    return {
        "epoch": epoch,
        "train_loss": sum(report.loss for report in good) / samples if samples else None,
        "lr": lr,
        "grad_norm": max((report.grad_norm for report in good), default=None),
        "samples": samples,
        "bad_steps": sum(report.bad for report in reports),
        "overflows": sum(report.overflow for report in reports),
        "seconds": round(seconds, 3),
        "samples_per_second": round(samples / seconds, 3),
    }


def validated_entry(validation: Validation) -> Entry:
    """What validation adds to an epoch."""
    return {
        "val_dice": validation.dice,
        "val_loss": validation.loss,
        "val_score_error": validation.score_error,
        "val_masks": validation.masks,
    }


def best_entry(history: Sequence[Entry]) -> Entry | None:
    """The epoch with the highest validation Dice, the start among them; without any, with the lowest training loss."""
    validated = [entry for entry in history if "val_dice" in entry]
    if validated:
        return max(validated, key=lambda entry: float(entry["val_dice"]))
    trained = [entry for entry in history if entry["epoch"] > 0]
    return min(trained, key=lambda entry: float(entry["train_loss"]), default=None)


def line(entry: Entry, epochs: int) -> str:
    """An epoch in one line."""
    parts = []
    if "train_loss" in entry:
        parts.append(f"loss {entry['train_loss']:.4f}")
    if "val_dice" in entry:
        parts.append(f"validation Dice {entry['val_dice']:.4f}, loss {entry['val_loss']:.4f}")
    if "seconds" in entry:
        parts.append(f"{entry['samples_per_second']:.1f} masks/s")
    notes = ("bad_steps", "overflows", "relabelled", "vanished", "empty")
    parts += [f"{name.replace('_', ' ')} {entry[name]}" for name in notes if entry.get(name)]
    if "first_thin" in entry:
        parts.append(f"a label too thin for the decoder first in {entry['first_thin']}")
    title = f"epoch {entry['epoch']}/{epochs}" if entry["epoch"] else "before training"
    return f"{title}: {', '.join(parts)}"


class EpochProgress:
    """A line every half minute within an epoch, which can take hours; never so many that a log can't be read."""

    _SECONDS = 30.0

    def __init__(self, say: Log, epoch: int, epochs: int, steps: int) -> None:
        self._say = say
        self._title = f"epoch {epoch}/{epochs}"
        self._steps = steps
        self._samples = 0
        self._began = self._shown = time.monotonic()

    def show(self, step: int, report: StepResult) -> None:
        """Count a step, numbered from 1, and print a line when it is due."""
        self._samples += report.samples
        now = time.monotonic()
        if now - self._shown < self._SECONDS:
            return
        self._shown = now
        seconds = now - self._began
        loss = report.loss / max(report.samples, 1)
        minutes = seconds / step * (self._steps - step) / 60
        rate = self._samples / seconds
        self._say(
            f"{self._title}: step {step}/{self._steps}, loss {loss:.4f}, {rate:.1f} masks/s, {minutes:.0f} min left"
        )


@dataclasses.dataclass(frozen=True)
class TrainOutcome:
    """How a run ended."""

    folder: Path
    epochs: int
    best_epoch: int
    """0: no epoch did better than the start, whose weights best.pth then holds."""
    best_dice: float | None
    """Mean validation Dice of best.pth; None when there was no validation."""
    start_dice: float | None
    """Mean validation Dice of the checkpoint that the run started from."""

    @classmethod
    def of(cls, folder: Path, epochs: int, history: Sequence[Entry]) -> TrainOutcome:
        """The outcome of at least one epoch."""
        best = best_entry(history)
        assert best is not None  # A run has at least one epoch.
        start = history[0].get("val_dice") if history[0]["epoch"] == 0 else None
        return cls(folder, epochs, best["epoch"], best.get("val_dice"), start)

    @property
    def improved(self) -> bool | None:
        """Whether best.pth is better than what the run started from; None where that wasn't measured."""
        if self.best_dice is None or self.start_dice is None:
            return None
        return self.best_dice > self.start_dice

    def line(self) -> str | None:
        """A note for the end of the run; None when no validation says whether the run was of use."""
        if self.improved is None:
            return None
        if not self.improved:
            return (
                f"nothing was gained: no epoch did better than the checkpoint it started from (validation Dice "
                f"{self.start_dice:.4f}), so {BEST} holds the starting weights: look at curves.png, and try another "
                "--lr or more data"
            )
        return f"best epoch {self.best_epoch}: validation Dice {self.start_dice:.4f} -> {self.best_dice:.4f}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {
            "best": str(self.folder / BEST),
            "last": str(self.folder / LAST),
            **values,
            "folder": str(self.folder),
            "improved": self.improved,
        }
