"""`samri-bench`: how fast, how large and how right a bundle is on this machine, on each provider and precision.

The command is in `_command`, which isn't imported here: what is measured starts through this package too.
"""

from __future__ import annotations

from samri_runtime.bench._case import Case
from samri_runtime.bench._measure import Effort, Sample, measure
from samri_runtime.bench._report import Report, Row
from samri_runtime.bench._scene import Scene, phantom_scene, scan_scene

__all__ = ["Case", "Effort", "Report", "Row", "Sample", "Scene", "measure", "phantom_scene", "scan_scene"]
