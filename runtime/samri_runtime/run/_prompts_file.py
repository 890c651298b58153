"""Prompts from a file, JSON, CSV or TSV: each entry is a box or points of a named object. See docs/samri-run.md."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from samri.errors import InputError, printable
from samri.opening import JSON_LIMIT, read_regular
from samri.prompts import BACKGROUND, FOREGROUND
from samri_runtime.run._placed import XYZ, Corners, Frame, Placed

STDIN = Path("-")

_FRAMES: tuple[tuple[Frame, str], ...] = (("pixel", ""), ("voxel", "voxel_"), ("mm", "mm_"))
_KEYS = {"object", "slice", "labels", *(f"{start}{what}" for _, start in _FRAMES for what in ("box", "points"))}
_COLUMNS: dict[Frame, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pixel": (("x1", "y1", "x2", "y2"), ("x", "y")),
    "voxel": (("i1", "j1", "k1", "i2", "j2", "k2"), ("i", "j", "k")),
    "mm": (("x1_mm", "y1_mm", "z1_mm", "x2_mm", "y2_mm", "z2_mm"), ("x_mm", "y_mm", "z_mm")),
}
_ALL_COLUMNS = {
    "object",
    "slice",
    "label",
    *(name for groups in _COLUMNS.values() for group in groups for name in group),
}


def gather_placed(
    *,
    voxel_boxes: Sequence[Corners],
    voxel_points: Sequence[XYZ],
    mm_boxes: Sequence[Corners],
    mm_points: Sequence[XYZ],
    lps: bool,
    prompts_file: Path | None,
) -> list[Placed]:
    """The prompts of a file, or of options: one object per box; or one of all points, with the box if there is one.

    Raises:
        click.UsageError: Options that don't go together.
        InputError: As `read_prompts`.
    """
    boxes = [*(("voxel", box) for box in voxel_boxes), *(("mm", box) for box in mm_boxes)]
    points = [("voxel", tuple(voxel_points)), ("mm", tuple(mm_points))]
    if lps and not (mm_boxes or mm_points or prompts_file):
        raise click.UsageError("--lps is for --mm-box, --mm-point and millimeters in --prompts.")
    if prompts_file is not None:
        if boxes or voxel_points or mm_points:
            raise click.UsageError("give prompts in the file of --prompts or as options, not both.")
        return read_prompts(prompts_file)
    if len(boxes) > 1 and (voxel_points or mm_points):
        raise click.UsageError("points can't be combined with several boxes: run once per box that has points.")
    return [
        *(Placed(number, frame, box) for number, (frame, box) in enumerate(boxes, start=1)),  # type: ignore[arg-type]
        *(Placed(1, frame, None, each, (FOREGROUND,) * len(each)) for frame, each in points if each),  # type: ignore[arg-type]
    ]


def read_prompts(path: Path) -> list[Placed]:
    """The prompts in a file, or on stdin for `-`.

    Raises:
        InputError: It can't be read, has unknown keys or columns, or an entry makes no sense; the text says which one.
    """
    data = sys.stdin.buffer.read(JSON_LIMIT + 1) if path == STDIN else read_regular(path, limit=JSON_LIMIT)
    named = "the prompts on stdin" if path == STDIN else str(path)
    try:
        text = data[:JSON_LIMIT].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named}: not text in UTF-8: save it again") from error
    if path.suffix.lower() == ".json" or (
        path.suffix.lower() not in (".csv", ".tsv") and text.lstrip()[:1] in ("[", "{")
    ):
        entries, what = _of_json(text, named), "entry"
    else:
        entries, what = _of_table(text, named), "line"
    if not entries:
        raise InputError(f"{named}: no prompts: give each object a box or a point")
    placed = []
    for number, entry in entries:
        try:
            placed.append(_placed(entry))
        except InputError as error:
            raise InputError(f"{named}, {what} {number}: {error}") from error
    return placed


def _of_json(text: str, named: str) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{named}: not JSON: {printable(error, 100)}") from error
    if isinstance(values, dict) and values.keys() == {"prompts"}:
        values = values["prompts"]
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise InputError(
            f'{named}: not a list of prompts, such as [{{"object": "brain", "slice": 3, "box": [1, 2, 30, 40]}}]'
        )
    return list(enumerate(values, start=1))


def _of_table(text: str, named: str) -> list[tuple[int, Mapping[str, Any]]]:
    first = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",", strict=True)
    entries: list[tuple[int, Mapping[str, Any]]] = []
    columns: list[str] = []
    try:
        for row in table:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not columns:
                columns = cells
                _check_columns(columns, named)
                continue
            if len(cells) != len(columns):
                raise InputError(f"{named}, line {table.line_num}: {len(cells)} cells under {len(columns)} columns")
            line = {name: cell for name, cell in zip(columns, cells, strict=True) if cell}
            try:
                entries.append((table.line_num, _entry_of_row(line)))
            except InputError as error:
                raise InputError(f"{named}, line {table.line_num}: {error}") from error
    except csv.Error as error:
        raise InputError(f"{named}, line {table.line_num}: {error}") from error
    return entries


def _check_columns(columns: Sequence[str], named: str) -> None:
    unknown = [name for name in columns if name not in _ALL_COLUMNS]
    if unknown or "object" not in columns or len(set(columns)) < len(columns):
        wrong = f"unknown columns {', '.join(printable(name, 40) or 'without a name' for name in unknown[:5])}"
        raise InputError(
            f"{named}: {wrong if unknown else 'no column object, or one twice'}: the columns are object, slice, "
            "x1 y1 x2 y2, x y label, i1 j1 k1 i2 j2 k2, i j k, x1_mm ... z2_mm, x_mm y_mm z_mm"
        )


def _entry_of_row(line: Mapping[str, str]) -> dict[str, Any]:
    """A row as an entry of JSON."""
    entry: dict[str, Any] = {"object": line.get("object")}
    if "slice" in line:
        entry["slice"] = _number(line["slice"])
    for frame, start in _FRAMES:
        for what, names in zip(("box", "points"), _COLUMNS[frame], strict=True):
            given = [name for name in names if name in line]
            if given and len(given) < len(names):
                raise InputError(f"{', '.join(name for name in names if name not in line)} is missing")
            if given:
                numbers = [_number(line[name]) for name in names]
                entry[f"{start}{what}"] = numbers if what == "box" else [numbers]
    if "label" in line:
        entry["labels"] = [_number(line["label"])]
    return entry


def _placed(entry: Mapping[str, Any]) -> Placed:
    unknown = sorted(entry.keys() - _KEYS)
    if unknown:
        raise InputError(f"unknown keys {', '.join(printable(name, 40) for name in unknown[:5])}")
    name = entry.get("object")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise InputError("'object' is the name of the object, in printable characters")
    frames = [(frame, start) for frame, start in _FRAMES if {f"{start}box", f"{start}points"} & entry.keys()]
    if len(frames) != 1:
        raise InputError(
            f"{name!r} has prompts in several frames: give one entry for each"
            if frames
            else f"{name!r} has no prompt: give it a box or points"
        )
    frame, start = frames[0]
    sides = 2 if frame == "pixel" else 3
    box, rows = entry.get(f"{start}box"), entry.get(f"{start}points", [])
    if not isinstance(rows, list):
        raise InputError("points are a list of coordinates")
    points = tuple(_numbers(row, sides, "a point") for row in rows)
    labels = entry.get("labels", [FOREGROUND] * len(points))
    if not isinstance(labels, list) or len(labels) != len(points) or not all(_is_label(label) for label in labels):
        raise InputError(f"labels are 1 (inside) or 0 (outside), one for each of the {len(points)} points")
    if box is None and not points:
        raise InputError(f"{name!r} has no prompt: give it a box or points")
    number = entry.get("slice")
    if number is not None and frame != "pixel":
        raise InputError("the slice follows from voxels and millimeters: leave out 'slice'")
    if number is not None and (isinstance(number, (bool, str, list, dict)) or number % 1 or number < 0):
        raise InputError(f"'slice' is a whole number from 0, not {printable(repr(number), 40)}")
    return Placed(
        name,
        frame,
        None if box is None else _numbers(box, 2 * sides, "a box"),
        points,
        tuple(int(label) for label in labels),
        None if number is None else int(number),
    )


def _is_label(value: Any) -> bool:
    return not isinstance(value, bool) and value in (FOREGROUND, BACKGROUND)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{printable(text, 40)!r} is no number") from error


def _numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    try:
        if not isinstance(values, list) or any(isinstance(each, (bool, str)) for each in values):
            raise ValueError
        numbers = tuple(float(each) for each in values)
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{what} is {count} numbers, not {printable(repr(values), 80)}") from error
    return numbers
