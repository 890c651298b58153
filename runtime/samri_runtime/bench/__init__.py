"""`samri-bench`: speed, memory and agreement of a bundle on this machine, by provider and precision.

The command is in `_command`, which isn't imported here, since the measured processes import this package too.
"""

from __future__ import annotations

from samri_runtime.bench._case import BenchCase, Scene, phantom_scene, scan_scene
from samri_runtime.bench._measure import Measurements, Repeats, measure
from samri_runtime.bench._report import BenchReport, BenchRow

__all__ = [
    "BenchCase",
    "BenchReport",
    "BenchRow",
    "Measurements",
    "Repeats",
    "Scene",
    "measure",
    "phantom_scene",
    "scan_scene",
]
