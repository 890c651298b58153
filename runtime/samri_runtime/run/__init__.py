"""`samri-run`: the command line of `samri.segment`."""

from __future__ import annotations

from samri_runtime.run._command import main

__all__ = ["main"]
