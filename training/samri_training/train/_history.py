"""What the epochs of a run were like: entries of `logs.json`, the best of them, and lines for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from samri_training.train._step import StepReport
from samri_training.train._validation import Validation

Say = Callable[[str], None]
Entry = dict[str, Any]


def trained_entry(epoch: int, reports: Sequence[StepReport], lr: float, seconds: float) -> Entry:
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


class Progress:
    """A line every half minute within an epoch, which can take hours; never so many that a log can't be read."""

    _SECONDS = 30.0

    def __init__(self, say: Say, epoch: int, epochs: int, steps: int) -> None:
        self._say = say
        self._title = f"epoch {epoch}/{epochs}"
        self._steps = steps
        self._samples = 0
        self._began = self._shown = time.monotonic()

    def show(self, step: int, report: StepReport) -> None:
        """Take note of a step, counted from 1, and say something when it is time."""
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
