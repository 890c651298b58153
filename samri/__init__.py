"""SAMRI's shared core: geometry, preprocessing, prompts and the bundle format, on numpy alone."""

from __future__ import annotations

from samri.errors import SamriError

__all__ = ["SamriError", "__version__"]

__version__ = "0.1.0"
