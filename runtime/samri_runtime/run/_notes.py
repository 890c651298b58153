"""Notes on a run: what a person should know, and the same without folders, which often name the patient."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from samri.geometry import Plane
from samri.io import Scan
from samri_runtime.run._claim import names_of, own_results, result_files
from samri_runtime.run._segment import Segmentation

# An absolute path up to its last part; a folder's name with a space ends the match early.
_ABSOLUTE = re.compile(r"(?<![\w.~/\\-])(?:~|[A-Za-z]:)?[/\\]{1,2}(?:[^\s/\\:;,'\"()]+[/\\])*(?=[^\s/\\])")
_BEGINS = r"(?<![\w./\\-])"


def without_folders(note: str, folders: Iterable[Path]) -> str:
    """The note with every path cut down to its last part.

    Args:
        note: A plain line.
        folders: Those that paths in it may begin with, as they were given; their names may hold spaces.
    """
    known = {place for at in folders for place in (str(at), str(at.absolute()), os.path.realpath(at))}
    for folder in sorted(known - {os.curdir, os.sep}, key=len, reverse=True):
        note = re.sub(f"{_BEGINS}{re.escape(folder)}[/\\\\]+", "", note)
        note = re.sub(rf"{_BEGINS}{re.escape(folder)}(?![\w.-])", "the folder", note)
    return _ABSOLUTE.sub("", note)


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


def replaced(output: Path, source: Path, candidates: int, *, png: bool) -> list[str]:
    """Notes on what is replaced: an earlier run's results, and what --overwrite was given for."""
    own = own_results(output, source)
    asked = [name for name in names_of(result_files(source, candidates, png=png)) if name not in own]
    others = [name for name in asked if os.path.lexists(output / name)]
    return [
        *([f"replaced the results of an earlier run: {', '.join(own)}"] if own else []),
        *([f"replaced, as --overwrite says: {', '.join(others)}"] if others else []),
    ]
