"""SAMRI's runtime: masks from a bundle of ONNX graphs, a slice and prompts. Needs numpy and ONNX Runtime only."""

from __future__ import annotations

from samri.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    PromptError,
    ProviderError,
    SamriError,
)
from samri.process import forbid_telemetry
from samri.prompts import Prompt
from samri_runtime._embedding import Embedding
from samri_runtime._prediction import Prediction
from samri_runtime._predictor import Predictor
from samri_runtime._sam_predictor import SamPredictor

forbid_telemetry()

__all__ = [
    "BundleError",
    "Embedding",
    "InputError",
    "MissingDependencyError",
    "Prediction",
    "Predictor",
    "Prompt",
    "PromptError",
    "ProviderError",
    "SamPredictor",
    "SamriError",
]
