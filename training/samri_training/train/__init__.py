"""Decoder-only fine-tuning on stored embeddings. `samri-train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samri_training.extras import require_training_packages
from samri_training.train._command import main
from samri_training.train._settings import Settings

if TYPE_CHECKING:
    from samri_training.train._run import train

__all__ = ["Settings", "main", "train"]


def __getattr__(name: str) -> object:
    # torch and MONAI take seconds to import, which `samri-train --help` needn't.
    if name == "train":
        require_training_packages()
        from samri_training.train._run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
