"""`samri-prepare`: volumes with label maps, or ready 2-D pairs, in; a slice dataset out."""

from __future__ import annotations

from samri_training.prepare._command import main
from samri_training.prepare._cut import Cut
from samri_training.prepare._dataset import prepare, prepare_arrays
from samri_training.prepare._report import PrepareReport

__all__ = ["Cut", "PrepareReport", "main", "prepare", "prepare_arrays"]
