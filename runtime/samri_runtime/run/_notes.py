"""Notes on a run: what a person should know."""

from __future__ import annotations

import os
from pathlib import Path

from samri.geometry import Plane
from samri.io import Scan
from samri_runtime.run._claim import names_of, own_results, result_files
from samri_runtime.run._segment import Segmentation


def unknown_orientation(scan: Scan, plane: Plane | None) -> list[str]:
    if plane is None or scan.oriented:
        return []
    return [f"{scan.path} doesn't say where its axes point (sform and qform codes are 0): {plane} is only a guess"]


def empty(segmentation: Segmentation) -> list[str]:
    """A note for each object of which nothing was found."""
    return [
        f"object {label} has no pixels: the model found nothing there, or other objects cover it"
        for label in range(1, segmentation.scores.shape[1] + 1)
        if not any(segmentation.voxels(candidate, label) for candidate in range(len(segmentation.label_maps)))
    ]


def replaced(output: Path, source: Path, candidates: int, *, png: bool, named: bool) -> list[str]:
    """Notes on what is replaced: an earlier run's results, and what --overwrite was given for."""
    own = own_results(output, source)
    files = result_files(source, candidates, png=png, named=named)
    asked = [name for name in names_of(files) if name not in own]
    others = [name for name in asked if os.path.lexists(output / name)]
    return [
        *([f"replaced the results of an earlier run: {', '.join(own)}"] if own else []),
        *([f"replaced, as --overwrite says: {', '.join(others)}"] if others else []),
    ]
