"""SAMRI's training: slices and masks in, a fine-tuned decoder and the proof of its gain out."""

from __future__ import annotations

from samri.process import forbid_telemetry

forbid_telemetry()  # MONAI imports onnxruntime where it finds it.
