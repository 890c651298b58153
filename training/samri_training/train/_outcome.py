"""How a run ended: which epoch is the best, and whether anything was gained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samri_training.train._history import Entry, best_entry
from samri_training.train._last import BEST, LAST


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    epochs: int
    best_epoch: int
    """0: no epoch did better than the start, whose weights best.pth then holds."""
    best_dice: float | None
    """Mean validation Dice of best.pth; None when there was no validation."""
    start_dice: float | None
    """Of the checkpoint that the run started from."""

    @classmethod
    def of(cls, folder: Path, epochs: int, history: Sequence[Entry]) -> Outcome:
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
        """What a person should know at the end; None when no validation says whether the run was of use."""
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
