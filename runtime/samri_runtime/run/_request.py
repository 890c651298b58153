"""What the options ask for: which slice, and which prompts."""

from __future__ import annotations

from collections.abc import Sequence

import click
import numpy as np

from samri.errors import InputError
from samri.geometry import Plane, SliceView, axis_view, plane_view, single_axis, whole_view
from samri.io import Scan
from samri.prompts import BACKGROUND, FOREGROUND, Prompt

XY = tuple[float, float]
XYXY = tuple[float, float, float, float]

_DEFAULT_AXIS = 2  # Of a volume: where most scanners' slices lie.


def choose_view(scan: Scan, index: int | None, axis: int | None, plane: Plane | None) -> SliceView:
    """The slice that `--slice`, `--axis` and `--plane` mean.

    A scan that is one slice needs none of them, nor does an axis or plane of one slice need `--slice`. In a volume the
    axis is the last one unless named.

    Raises:
        click.UsageError: The options don't name one slice.
        InputError: The slice doesn't exist.
    """
    if axis is not None and plane is not None:
        raise click.UsageError("give --axis or --plane, not both.")
    if scan.kind == "raster" or len(scan.grid) == 2:
        if (index, axis, plane) != (None, None, None):
            raise click.UsageError(f"{scan.path} is one slice: leave out --slice, --axis and --plane.")
        return whole_view(scan.grid)
    single, place = single_axis(scan.grid), 0 if index is None else index
    try:
        if plane is not None:
            view = plane_view(scan.grid, scan.affine, plane, place)
        else:
            across = (_DEFAULT_AXIS if single is None else single) if axis is None else axis
            view = axis_view(scan.grid, across, place)
    except InputError as error:
        raise InputError(f"{scan.path}: {error}") from error
    if index is None and scan.grid[view.axis or 0] > 1:
        raise click.UsageError(_which_slice(scan, view, axis))
    return view


def view_spacing(scan: Scan, view: SliceView) -> tuple[float, float]:
    """Distance between the rows and between the columns of a slice as shown, in the affine's units."""
    described = view.describe()
    return scan.spacing[described["rows_from_axis"]], scan.spacing[described["columns_from_axis"]]


def voxel_volume(scan: Scan) -> float | None:
    """Cubic millimeters of a voxel; None for a picture, whose spacing nobody knows, and a singular affine."""
    if scan.nifti is None:
        return None
    volume = abs(float(np.linalg.det(scan.affine[:3, :3])))
    return volume if np.isfinite(volume) and volume > 0 else None


def build_prompts(boxes: Sequence[XYXY], points: Sequence[XY], negative_points: Sequence[XY]) -> list[Prompt]:
    """One prompt a box; or one prompt of all points, with the box if there is one.

    Raises:
        click.UsageError: Nothing is asked, or points that could belong to any of several boxes.
        PromptError: A number isn't finite.
    """
    if not (boxes or points or negative_points):
        raise click.UsageError("nothing to segment: give at least one --box X1 Y1 X2 Y2 or --point X Y.")
    if not (points or negative_points):
        return [Prompt.of(box=box) for box in boxes]
    if len(boxes) > 1:
        raise click.UsageError("points can't be combined with several boxes: run once per box that has points.")
    labels = [FOREGROUND] * len(points) + [BACKGROUND] * len(negative_points)
    return [Prompt.of([*points, *negative_points], labels, boxes[0] if boxes else None)]


def check_names(names: Sequence[str], objects: int) -> None:
    """One name for each object, or none at all.

    Raises:
        click.UsageError: Another number of names, an empty one, or one twice.
    """
    if names and len(names) != objects:
        raise click.UsageError(f"give one --label per object, so {objects}, in the order of the prompts; or none.")
    if not all(name.strip() and name.isprintable() for name in names):
        raise click.UsageError("--label must be a printable name, not empty.")
    if len(set(names)) < len(names):
        raise click.UsageError("two --label names are the same: give each object its own.")


def _which_slice(scan: Scan, view: SliceView, axis: int | None) -> str:
    """The usage error for a volume without `--slice`, with the range that there is."""
    if view.plane is not None:
        named, other = f"--plane {view.plane}", "--axis"
    else:
        named, other = f"axis {view.axis}", "--plane" if axis is not None else "--axis or --plane"
    last = scan.grid[view.axis or 0] - 1
    return f"{scan.path} is a volume of shape {scan.grid}: choose --slice 0 to {last} of {named}, or another {other}."
