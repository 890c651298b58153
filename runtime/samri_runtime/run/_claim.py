"""What a run finds in its output folder, and whether it may replace it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samri.errors import OutputError
from samri.geometry import SliceView
from samri.io import Scan, scan_name
from samri.ownership import read_sealed, refuse_foreign_files, unchanged
from samri.staging import claimed_folder

PROGRAM = "samri-run"
_CANDIDATES = 3


def result_files(scan: Path, candidates: int, *, png: bool = True, named: bool = False) -> dict[str, list[str]]:
    """File names by what they hold: `masks`, `provenance`, `pictures`, `overlay`, and `table` of objects with names."""
    name = scan_name(scan)
    numbers = [""] if candidates == 1 else [str(number) for number in range(1, candidates + 1)]
    return {
        "masks": [f"{name}_seg_{number}.nii.gz" for number in numbers],
        "provenance": [f"{name}_seg_.json"],
        "pictures": [f"{name}_seg_{number}.png" for number in numbers if png],
        "overlay": [f"{name}_overlay.png"] if png else [],
        "table": [f"{name}_seg_dseg.tsv"] if named else [],
    }


def names_of(files: Mapping[str, Sequence[str]]) -> list[str]:
    """All names of `result_files`."""
    return [name for names in files.values() for name in names]


def claimed(output: Path, scan: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the results of a scan of this name in `output` for this process, and repair what a killed one left.

    Raises:
        OutputError: Another process has them, or the folder can't be made.
    """
    name = scan_name(scan)
    busy = f"another samri-run writes the results of {name} into {output}: wait for it, or name another --output"
    return claimed_folder(output, f".{name}_seg_.lock", busy)


def own_results(output: Path, scan: Path) -> list[str]:
    """Names of the files in `output` that an earlier run made of a scan of this name, and nobody changed."""
    record = _record(output, scan)
    if record is None:
        return []
    every = dict.fromkeys([*names_of(result_files(scan, 1, named=True)), *names_of(result_files(scan, _CANDIDATES))])
    # A record names files, but no others than those that a run makes are believed to be one's.
    own = {*unchanged(output, {name: record["files"].get(name) for name in every}), _provenance_of(scan)}
    return [name for name in every if name in own]


def check_replaceable(
    output: Path, scan: Scan, view: SliceView, candidates: int, *, png: bool, named: bool = False
) -> None:
    """Refuse to replace anything but what an earlier run made of the very same slice.

    Raises:
        OutputError: It says which file, and what to do.
    """
    record = _record(output, scan.path)
    if record is not None and (other := _difference(record, scan, view)):
        raise OutputError(
            f"{output / _provenance_of(scan.path)} is the result of {other}: name another --output, "
            "or pass --overwrite to replace it"
        )
    names = names_of(result_files(scan.path, candidates, png=png, named=named))
    refuse_foreign_files(output, names, own_results(output, scan.path))


def _difference(record: Mapping[str, Any], scan: Scan, view: SliceView) -> str | None:
    """What makes an earlier run another one: its scan, frame or slice; None where all are the same."""
    was, cut = record.get("input"), record.get("slice")
    if not (isinstance(was, dict) and isinstance(cut, dict)) or was.get("sha256") != scan.sha256:
        return "another scan of the same name"
    if (was.get("frame") or 0) != scan.frame:
        return f"frame {was.get('frame') or 0}, not {scan.frame}"
    if (cut.get("axis"), cut.get("index")) != (view.axis, view.index):
        return f"slice {cut.get('index')} along axis {cut.get('axis')}, not {view.index} along axis {view.axis}"
    return None


def _record(output: Path, scan: Path) -> dict[str, Any] | None:
    """The earlier provenance, if there is one that nobody changed."""
    record = read_sealed(output / _provenance_of(scan))
    return record if record is not None and record.get("program") == PROGRAM else None


def _provenance_of(scan: Path) -> str:
    return result_files(scan, 1)["provenance"][0]
