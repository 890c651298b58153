"""Prompts from a file, or in voxel indices or millimeters: which slice they are on, and where on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
import numpy as np
import numpy.typing as npt

from samri.errors import InputError, PromptError
from samri.frames import box_of_corners, box_of_voxels, lps_to_ras, mm_to_voxel, nearest_index, voxel_to_pixel
from samri.geometry import Plane, SliceView
from samri.io import Scan
from samri.prompts import Prompt
from samri_runtime.cli import GivenFile
from samri_runtime.segment import SliceChoiceError, choose_view

Frame = Literal["pixel", "voxel", "mm"]

XYZ = tuple[float, float, float]
Corners = tuple[float, float, float, float, float, float]

_OPTIONS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    (
        "--voxel-box",
        "voxel_boxes",
        {"nargs": 6, "multiple": True, "type": float, "metavar": "I1 J1 K1 I2 J2 K2"},
        "Box from one corner voxel to the opposite one, instead of --box; the slice follows from it. Repeatable.",
    ),
    (
        "--voxel-point",
        "voxel_points",
        {"nargs": 3, "multiple": True, "type": float, "metavar": "I J K"},
        "Voxel inside the object, instead of --point; the slice follows from it. Repeatable.",
    ),
    (
        "--mm-box",
        "mm_boxes",
        {"nargs": 6, "multiple": True, "type": float, "metavar": "X1 Y1 Z1 X2 Y2 Z2"},
        "Box between two opposite corners, in millimeters of the scan's world, RAS+; otherwise as --voxel-box.",
    ),
    (
        "--mm-point",
        "mm_points",
        {"nargs": 3, "multiple": True, "type": float, "metavar": "X Y Z"},
        "Place inside the object, in millimeters of the scan's world, RAS+. Repeatable.",
    ),
    ("--lps", "lps", {"is_flag": True}, "Millimeters are LPS+, as ITK and DICOM count them."),
    (
        "--prompts",
        "prompts_file",
        {"type": GivenFile(), "metavar": "FILE"},
        "Prompts from a JSON, CSV or TSV file, or - for stdin: name of the object, slice, box, points.",
    ),
)


def placed_options(function: Callable[..., None]) -> Callable[..., None]:
    """`--voxel-box`, `--voxel-point`, `--mm-box`, `--mm-point`, `--lps` and `--prompts`."""
    for name, parameter, settings, text in reversed(_OPTIONS):
        function = click.option(name, parameter, help=text, **settings)(function)
    return function


@dataclass(frozen=True)
class Placed:
    """A box, points or both of one object, in one frame.

    Attributes:
        object: Its name, or its number where it has none.
        frame: What the coordinates count; boxes and points in pixels have two dimensions, others three.
        box: Two opposite corners in a row, or None.
        points: (N, 2) or (N, 3).
        labels: N of 1 (inside) or 0 (outside).
        slice: The slice of a prompt in pixels; None for that of `--slice`.
    """

    object: str | int
    frame: Frame
    box: tuple[float, ...] | None = None
    points: tuple[tuple[float, ...], ...] = ()
    labels: tuple[int, ...] = ()
    slice: int | None = None


def place(
    placed: Sequence[Placed],
    scan: Scan,
    index: int | None,
    axis: int | None,
    plane: Plane | None,
    *,
    lps: bool = False,
) -> tuple[list[dict[int, Prompt]], tuple[str, ...]]:
    """Each object's prompts by slice, in pixels of the slice as shown, and the names, if they have any.

    Raises:
        click.UsageError: A prompt in pixels without a slice.
        PromptError: A place outside the scan, a box across slices, two boxes of one object on a slice, or a prompt
            outside its slice.
        InputError: Millimeters of a scan that has none, or there is no such slice.
    """
    try:
        pieces = _pieces(placed, scan, index, axis, plane, lps)
    except SliceChoiceError as error:
        raise click.UsageError(f"{error}.") from error
    objects = [{number: here.prompt() for number, here in sorted(slices.items())} for slices in pieces.values()]
    return objects, tuple(name for name in pieces if isinstance(name, str))


def on_one_slice(scan: Scan, objects: Sequence[dict[int, Prompt]]) -> tuple[int | None, list[Prompt]]:
    """The one slice that all objects are prompted on, None where the scan is one, and the prompts.

    Raises:
        PromptError: They are on several slices.
    """
    numbers = sorted({number for slices in objects for number in slices})
    if len(numbers) > 1:
        raise PromptError(
            f"the prompts are on slices {', '.join(map(str, numbers[:10]))}: add --propagate to segment the volume, or "
            "run once per slice"
        )
    return None if len(scan.grid) == 2 else numbers[0], [slices[numbers[0]] for slices in objects]


def _pieces(
    placed: Sequence[Placed], scan: Scan, index: int | None, axis: int | None, plane: Plane | None, lps: bool
) -> dict[str | int, dict[int, _Pieces]]:
    pieces: dict[str | int, dict[int, _Pieces]] = {}
    flat = len(scan.grid) == 2
    base = choose_view(scan, None if flat else 0, axis, plane)
    for each in placed:
        of_object = pieces.setdefault(each.object, {})
        if each.frame == "pixel":
            number = index if each.slice is None else each.slice
            view = base if flat and not number else choose_view(scan, number, axis, plane)
            here = of_object.setdefault(number or 0, _Pieces(view))
            if each.box is not None:
                here.add_box(each.object, np.array(each.box), number or 0)
            for point, label in zip(each.points, each.labels, strict=True):
                here.add_point(np.array(point), label)
            continue
        if each.box is not None:
            corners = _voxels(each, np.array(each.box).reshape(2, 3), scan, lps)
            number = _slice_of(base, corners, f"box {_shown(each.box, each.frame)}")
            here = of_object.setdefault(number, _Pieces(base))
            around = box_of_voxels if each.frame == "voxel" else box_of_corners
            here.add_box(each.object, around(base, corners), number)
        for point, label in zip(each.points, each.labels, strict=True):
            voxel = _voxels(each, np.array([point]), scan, lps)
            number = _slice_of(base, voxel, f"point {_shown(point, each.frame)}")
            # The outer half of the first voxel has coordinates below 0.
            pixel = voxel_to_pixel(base, voxel)[0].clip(min=0)
            of_object.setdefault(number, _Pieces(base)).add_point(pixel, label)
    return pieces


class _Pieces:
    """What was given of one object on one slice."""

    def __init__(self, view: SliceView) -> None:
        self._shape = view.shape
        self._box: npt.NDArray[np.float64] | None = None
        self._points: list[npt.NDArray[np.float64]] = []
        self._labels: list[int] = []

    def add_box(self, name: str | int, box: npt.NDArray[np.float64], number: int) -> None:
        if self._box is not None:
            raise PromptError(f"{name!r} has two boxes on slice {number}: give each object its own name")
        self._box = box

    def add_point(self, point: npt.NDArray[np.float64], label: int) -> None:
        self._points.append(point)
        self._labels.append(label)

    def prompt(self) -> Prompt:
        prompt = Prompt.of(np.array(self._points).reshape(-1, 2), self._labels, self._box)
        prompt.validate(self._shape)
        return prompt


def _voxels(each: Placed, places: npt.NDArray[np.float64], scan: Scan, lps: bool) -> npt.NDArray[np.float64]:
    if each.frame == "voxel":
        return places
    if scan.nifti is None:
        raise InputError(f"{scan.path} is a picture without millimeters: give pixels or voxel indices")
    if not scan.oriented:
        raise InputError(
            f"{scan.path} doesn't say where its axes point (sform and qform codes are 0), so it has no millimeters: "
            "give pixels or voxel indices"
        )
    # To a thousandth of a voxel: affines are stored in float32, and a whole voxel should stay one.
    return mm_to_voxel(scan.affine, lps_to_ras(places) if lps else places).round(3)


def _slice_of(base: SliceView, voxels: npt.NDArray[np.float64], named: str) -> int:
    """The number of the slice, as the direction of `base`, its slice 0, counts."""
    return abs(nearest_index(base.grid, base.axis, voxels, named) - base.index)


def _shown(numbers: Sequence[float], frame: str) -> str:
    groups = [", ".join(f"{number:g}" for number in numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
    return " to ".join(f"({group})" for group in groups) + (" mm" if frame == "mm" else "")
