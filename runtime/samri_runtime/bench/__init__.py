"""`samri-bench`: speed, memory and agreement of a bundle on this machine, by provider and precision.

The command is in `_command`, which isn't imported here, since the measured processes import this package too.
"""

from __future__ import annotations

from samri_runtime.bench._case import Case, Scene, phantom_scene, scan_scene
from samri_runtime.bench._measure import Repeats, Sample, measure
from samri_runtime.bench._report import Report, Row

__all__ = ["Case", "Repeats", "Report", "Row", "Sample", "Scene", "measure", "phantom_scene", "scan_scene"]
