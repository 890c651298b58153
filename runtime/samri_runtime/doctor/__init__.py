"""`samri-doctor`: the whole story of ONNX Runtime on this machine."""

from __future__ import annotations

from samri_runtime.doctor._command import main

__all__ = ["main"]
