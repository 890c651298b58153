"""How good the demo model is: Dice on drawn slices and real scans, beside an ellipse and Otsu's threshold.

    python -m samri_tiny.evaluate --model BUNDLE --label-maps FOLDER --mricrop FOLDER --output FOLDER

It asks a bundle through `samri_runtime.Predictor`, as users do.
"""

from __future__ import annotations

from samri_tiny.evaluate._answers import PromptedMask, Results, TestSet, ask_all, corrective_point, evaluate_set
from samri_tiny.evaluate._baselines import filled_ellipse, otsu_in_box, otsu_threshold
from samri_tiny.evaluate._cases import PromptedStructure, TestSlice, cases_of, contrast_to_noise, digest
from samri_tiny.evaluate._command import main
from samri_tiny.evaluate._slices import (
    dataset_slices,
    mricrop_slices,
    read_gipl,
    synthetic_slices,
    template_slices,
)

__all__ = [
    "PromptedMask",
    "PromptedStructure",
    "Results",
    "TestSet",
    "TestSlice",
    "ask_all",
    "cases_of",
    "contrast_to_noise",
    "corrective_point",
    "dataset_slices",
    "digest",
    "evaluate_set",
    "filled_ellipse",
    "main",
    "mricrop_slices",
    "otsu_in_box",
    "otsu_threshold",
    "read_gipl",
    "synthetic_slices",
    "template_slices",
]
