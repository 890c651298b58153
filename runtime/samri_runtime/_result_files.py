"""The files of one segmentation: their names, what they may replace, and writing all of them or none."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import OutputError
from samri.geometry import SliceView
from samri.io import (
    Scan,
    draw_overlay,
    nibabel_version,
    scan_name,
    side_by_side,
    write_label_table,
    write_mask,
    write_png,
)
from samri.ownership import read_sealed, refuse_foreign_files, sealed_json, unchanged
from samri.prompts import Prompt
from samri.staging import claimed_folder, refuse_folders_in_the_way, staged_files

PROGRAM = "samri-run"
_CANDIDATES = 3


def result_files(
    scan: Path, candidates: int, *, png: bool = True, named: bool = False, volume: bool = False
) -> dict[str, list[str]]:
    """File names by what they hold: `masks`, `provenance`, `pictures`, `overlay`, `slices`, and `table` of names.

    A volume has no picture of a mask, a montage for an overlay, and a table of its slices.
    """
    name = scan_name(scan)
    numbers = [""] if candidates == 1 else [str(number) for number in range(1, candidates + 1)]
    return {
        "masks": [f"{name}_seg_{number}.nii.gz" for number in numbers],
        "provenance": [f"{name}_seg_.json"],
        "pictures": [f"{name}_seg_{number}.png" for number in numbers if png and not volume],
        "overlay": [f"{name}_montage.png" if volume else f"{name}_overlay.png"] if png else [],
        "slices": [f"{name}_slices.csv"] if volume else [],
        "table": [f"{name}_seg_dseg.tsv"] if named else [],
    }


def names_of(files: Mapping[str, Sequence[str]]) -> list[str]:
    """All names of `result_files`."""
    return [name for names in files.values() for name in names]


def claimed(output: Path, scan: Path) -> contextlib.AbstractContextManager[None]:
    """Reserve the results of a scan of this name in `output` for this process, and repair what a killed one left.

    Raises:
        OutputError: Another process has reserved them, or the folder can't be created.
    """
    name = scan_name(scan)
    busy = f"another samri-run is writing the results of {name} into {output}: wait for it, or name another --output"
    return claimed_folder(output, f".{name}_seg_.lock", busy)


def check_output(
    folder: Path, scan: Path, candidates: int, *, png: bool = True, named: bool = False, volume: bool = False
) -> None:
    """Check before the work starts that its results can be written.

    Raises:
        OutputError: `folder` is a file, it or its parent isn't writable, or a folder in it has the name of a result.
        InputError: `scan` doesn't have the name of an image.
        MissingDependencyError: nibabel, which writes the masks of pictures too, isn't installed.
    """
    nibabel_version()
    existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if not existing.is_dir():
        raise OutputError(f"cannot write {folder}: {existing} is not a folder: name another --output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {folder}: {existing} is not writable: name another --output")
    refuse_folders_in_the_way(folder, names_of(result_files(scan, candidates, png=png, named=named, volume=volume)))


def own_results(output: Path, scan: Path) -> list[str]:
    """Names of the files in `output` that an earlier run on a scan of this name wrote, and that are unchanged."""
    record = _record(output, scan)
    if record is None:
        return []
    kinds = (
        result_files(scan, 1, named=True),
        result_files(scan, _CANDIDATES),
        result_files(scan, 1, volume=True),
    )
    every = dict.fromkeys(name for files in kinds for name in names_of(files))
    # A record could name any file; only those that a run writes count.
    names = {*unchanged(output, {name: record["files"].get(name) for name in every}), _provenance_of(scan)}
    return [name for name in every if name in names]


def check_replaceable(
    output: Path,
    scan: Scan,
    view: SliceView | None,
    candidates: int,
    *,
    png: bool,
    named: bool = False,
    volume: bool = False,
) -> None:
    """Refuse to replace any files but those of an earlier run on the same slice, or through the same axis.

    Those of a session, without a view, replace results of a session of the same scan.

    Raises:
        OutputError: A file would be replaced that is another's.
    """
    record = _record(output, scan.path)
    if record is not None and (other := _difference(record, scan, view, volume)):
        raise OutputError(
            f"{output / _provenance_of(scan.path)} is the result of {other}: name another --output, "
            "or pass --overwrite to replace it"
        )
    names = names_of(result_files(scan.path, candidates, png=png, named=named, volume=volume))
    refuse_foreign_files(output, names, own_results(output, scan.path))


def replaced(
    output: Path, source: Path, candidates: int, *, png: bool, named: bool = False, volume: bool = False
) -> list[str]:
    """Notes on the files that will be replaced: results of an earlier run, and those that need --overwrite."""
    earlier_results = own_results(output, source)
    files = result_files(source, candidates, png=png, named=named, volume=volume)
    new = [name for name in names_of(files) if name not in earlier_results]
    others = [name for name in new if os.path.lexists(output / name)]
    return [
        *([f"replaced the results of an earlier run: {', '.join(earlier_results)}"] if earlier_results else []),
        *([f"replaced, as --overwrite says: {', '.join(others)}"] if others else []),
    ]


def write_results(
    output: Path,
    scan: Scan,
    view: SliceView,
    prompts: Sequence[Prompt],
    slice_labels: Sequence[npt.NDArray[Any]],
    scores: npt.NDArray[np.float32],
    provenance: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
    png: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write `<name>_seg_.nii.gz`, `<name>_seg_.json` and, with `png`, `<name>_seg_.png` and `<name>_overlay.png`.

    Three candidates are `<name>_seg_1.nii.gz` to `<name>_seg_3.nii.gz` (and `.png`), side by side in the overlay. With
    `names`, there is `<name>_seg_dseg.tsv` too.

    Args:
        output: The folder; created if missing. Results of an earlier run on the same slice are replaced or removed.
        scan: The scan.
        view: The slice of it.
        prompts: The B prompts, in pixels of the slice as shown.
        slice_labels: One (H, W) label map of the slice as shown, or three candidates.
        scores: (B,) float32, or (B, 3).
        provenance: Written to the JSON file, with the SHA-256 of all other files.
        names: Names of the objects; they also stand in the headers of the masks.
        png: Write the mask and the overlay as pictures too.
        overwrite: Also replace other files of these names.

    Returns:
        The files, masks first.

    Raises:
        OutputError: A file can't be written, or would replace one that this program didn't make; then none is written.
    """
    candidates = len(slice_labels)
    named = dict(enumerate(names, start=1))
    files = result_files(scan.path, candidates, png=png, named=bool(named))
    (record,) = files["provenance"]
    with staged_files(output, obsolete=own_results(output, scan.path), last=record) as stage:
        for name, labels in zip(files["masks"], slice_labels, strict=True):
            write_mask(stage / name, view.insert(labels, labels.dtype), scan, named)
        for name, labels in zip(files["pictures"], slice_labels, strict=False):
            write_png(stage / name, np.where(labels > 0, np.uint8(255), np.uint8(0)))
        for name in files["overlay"]:
            write_png(stage / name, _overlay(scan, view, prompts, slice_labels, scores))
        for name in files["table"]:
            write_label_table(stage / name, named)
        others = [name for name in names_of(files) if name != record]
        (stage / record).write_text(sealed_json(provenance, stage, others), "utf-8")
        if not overwrite:  # Again: somebody may have put a file there meanwhile.
            check_replaceable(output, scan, view, candidates, png=png, named=bool(named))
    return [output / name for name in names_of(files)]


def write_volume_results(
    output: Path,
    scan: Scan,
    view: SliceView,
    labels: npt.NDArray[Any],
    slices: Sequence[Mapping[str, Any]],
    montage: Callable[[], npt.NDArray[np.uint8]],
    provenance: Mapping[str, Any],
    *,
    names: Sequence[str],
    png: bool = True,
    overwrite: bool = False,
) -> list[Path]:
    """Write `<name>_seg_.nii.gz`, `.json`, `<name>_slices.csv`, the table of names and, with `png`, the montage.

    Args:
        output: The folder; created if missing. Results of an earlier run through the same axis are replaced.
        scan: The scan.
        view: Any slice of the axis.
        labels: In the grid of the scan.
        slices: Rows of the table, all with the same columns.
        montage: Draws the picture.
        provenance: Written to the JSON file, with the SHA-256 of all other files.
        names: Names of the objects.
        png: Write the montage.
        overwrite: Also replace other files of these names.

    Raises:
        OutputError: As `write_results`.
    """
    named = dict(enumerate(names, start=1))
    files = result_files(scan.path, 1, png=png, named=True, volume=True)
    (record,) = files["provenance"]
    with staged_files(output, obsolete=own_results(output, scan.path), last=record) as stage:
        write_mask(stage / files["masks"][0], labels, scan, named)
        for name in files["overlay"]:
            write_png(stage / name, montage())
        with (stage / files["slices"][0]).open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(slices[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(slices)
        write_label_table(stage / files["table"][0], named)
        others = [name for name in names_of(files) if name != record]
        (stage / record).write_text(sealed_json(provenance, stage, others), "utf-8")
        if not overwrite:  # Again: somebody may have put a file there meanwhile.
            check_replaceable(output, scan, view, 1, png=png, named=True, volume=True)
    return [output / name for name in names_of(files)]


def write_session_results(
    output: Path,
    scan: Scan,
    labels: npt.NDArray[Any],
    provenance: Mapping[str, Any],
    *,
    names: Mapping[int, str],
    colors: Mapping[int, str],
    overwrite: bool = False,
) -> list[Path]:
    """Write `<name>_seg_.nii.gz`, `<name>_seg_.json` and the table of names and colors, all or none.

    Args:
        output: The folder; created if missing. Results of an earlier session of the same scan are replaced.
        scan: The scan.
        labels: In the grid of the scan.
        provenance: Written to the JSON file, with the SHA-256 of all other files.
        names: Label to name.
        colors: Label to `#rrggbb`.
        overwrite: Also replace other files of these names.

    Raises:
        OutputError: As `write_results`.
    """
    files = result_files(scan.path, 1, png=False, named=True)
    (mask,), (record,), (table,) = files["masks"], files["provenance"], files["table"]
    with staged_files(output, obsolete=own_results(output, scan.path), last=record) as stage:
        write_mask(stage / mask, labels, scan, names, colors)
        write_label_table(stage / table, names, colors)
        (stage / record).write_text(sealed_json(provenance, stage, [mask, table]), "utf-8")
        if not overwrite:  # Again: somebody may have put a file there meanwhile.
            check_replaceable(output, scan, None, 1, png=False, named=True)
    return [output / name for name in names_of(files)]


def _overlay(
    scan: Scan,
    view: SliceView,
    prompts: Sequence[Prompt],
    slice_labels: Sequence[npt.NDArray[Any]],
    scores: npt.NDArray[np.float32],
) -> npt.NDArray[np.uint8]:
    image, spacing = view.extract(scan.voxels), view.spacing(scan.spacing)
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    points = np.concatenate([prompt.points for prompt in prompts])
    point_labels = np.concatenate([prompt.labels for prompt in prompts]).tolist()
    prompts_to_draw = [
        draw_overlay(image, labels, boxes=boxes, points=points, point_labels=point_labels, spacing=spacing)
        for labels in slice_labels
    ]
    if len(prompts_to_draw) == 1:
        return prompts_to_draw[0]
    captions = [
        f"{number}: score {', '.join(f'{score:.2f}' for score in of_map)}" for number, of_map in enumerate(scores.T, 1)
    ]
    return side_by_side(prompts_to_draw, captions)


def _difference(record: Mapping[str, Any], scan: Scan, view: SliceView | None, volume: bool) -> str | None:
    """How an earlier run differs: its scan, frame or slice; None where all are the same."""
    was, cut = record.get("input"), record.get("slice")
    if not (isinstance(was, dict) and isinstance(cut, dict)) or was.get("sha256") != scan.sha256:
        return "another scan of the same name"
    if (was.get("frame") or 0) != scan.frame:
        return f"frame {was.get('frame') or 0}, not {scan.frame}"
    if view is None or record.get("session") is not None:
        if view is None and record.get("session") is not None:
            return None
        return "prompts, not of a session" if view is None else "a session"
    whole = record.get("volume") is not None
    if whole is not volume or (whole and cut.get("axis") != view.axis):
        was_of = f"the volume along axis {cut.get('axis')}" if whole else f"slice {cut.get('index')} alone"
        return f"{was_of}, not {f'of the volume along axis {view.axis}' if volume else f'of slice {view.index} alone'}"
    if not whole and (cut.get("axis"), cut.get("index")) != (view.axis, view.index):
        return f"slice {cut.get('index')} along axis {cut.get('axis')}, not {view.index} along axis {view.axis}"
    return None


def _record(output: Path, scan: Path) -> dict[str, Any] | None:
    """The provenance of an earlier run, if it is there and unchanged."""
    record = read_sealed(output / _provenance_of(scan))
    return record if record is not None and record.get("program") == PROGRAM else None


def _provenance_of(scan: Path) -> str:
    return result_files(scan, 1)["provenance"][0]
