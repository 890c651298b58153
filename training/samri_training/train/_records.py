"""What a run leaves beside its weights: `args.json`, `environment.txt`, `logs.json`, `curves.png`, events."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from samri import __version__
from samri.errors import MissingDependencyError
from samri.staging import staged_file


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
            done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown (git can't be run)"
        if done.returncode:
            return f"none (samri {__version__} is not run from a git checkout)"
        answers.append(done.stdout.strip())
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
    found = {(each.metadata["Name"] or "", each.version) for each in importlib.metadata.distributions()}
    return sorted((f"{name}=={version}" for name, version in found if name), key=str.lower)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    if isinstance(values, float) and (values != values or abs(values) == float("inf")):
        return None
    return values
