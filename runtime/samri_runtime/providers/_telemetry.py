"""ONNX Runtime's telemetry, switched off: SAMRI sends nothing.

From 1.29 on, ONNX Runtime's own wheels for Linux and macOS send events to Microsoft over HTTPS, and keep an id of the
device in the user's cache; on Windows they go to the system's event tracing. Only an environment variable that is set
before the import keeps the id and the first event from being made.
"""

from __future__ import annotations

import os
from typing import Any

# The released name, and that of some builds in between.
_VARIABLES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")


def forbid_telemetry() -> None:
    """Call before onnxruntime is imported. A user's own value of the variables stands."""
    for variable in _VARIABLES:
        os.environ.setdefault(variable, "1")


def stop_telemetry(onnxruntime: Any) -> None:
    """Call after the import: for Windows, and for hosts that had imported onnxruntime already."""
    if os.environ.get(_VARIABLES[0]) == "1":
        onnxruntime.disable_telemetry_events()
