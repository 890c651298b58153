"""SAMRI: promptable segmentation of MRI. Most programs need `load_model`, `read_scan`, `segment` and `Session` alone.

The rest of this package is the core that the others share (geometry, preprocessing, prompts, the bundle format), on
numpy alone. These are imported when first used, so that `import samri` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from samri.errors import SamriError

if TYPE_CHECKING:
    from samri.io import read_scan
    from samri_runtime.segment import load_model, segment
    from samri_runtime.session import Session
    from samri_runtime.volume import segment_volume

__all__ = ["SamriError", "Session", "__version__", "load_model", "read_scan", "segment", "segment_volume"]

__version__ = "0.1.0"

_LAZY = {
    "Session": "samri_runtime.session",
    "load_model": "samri_runtime.segment",
    "read_scan": "samri.io",
    "segment": "samri_runtime.segment",
    "segment_volume": "samri_runtime.volume",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
