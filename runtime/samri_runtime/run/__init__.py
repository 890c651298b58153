"""`samri-run`: a scan and a box in, a mask in the scan's own space out."""

from __future__ import annotations

from samri_runtime.run._command import main

__all__ = ["main"]
