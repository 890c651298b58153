"""SAMRI's training: from volumes and masks to slices, embeddings, a fine-tuned decoder and its evaluation."""

from __future__ import annotations

from samri.process import forbid_telemetry

forbid_telemetry()  # MONAI imports onnxruntime where it finds it.
