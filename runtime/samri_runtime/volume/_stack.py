"""The slices of a scan along one direction, in the order in which a person scrolls through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import SliceView, axis_view, plane_view, single_axis
from samri.io import Scan


@dataclass(frozen=True, eq=False)
class SliceStack:
    """All slices parallel to a view, numbered as the view is: in RAS order for a plane, by array index for an axis.

    Attributes:
        scan: The volume.
        view: Any slice of the stack.

    Raises:
        InputError: The scan has one slice only, so there is nothing to go through.
    """

    scan: Scan
    view: SliceView

    def __post_init__(self) -> None:
        if self.view.axis is None or len(self) < 2 or single_axis(self.view.grid) == self.view.axis:
            raise InputError(f"{self.scan.path} holds one slice: there is no volume to propagate through")

    def __len__(self) -> int:
        return 0 if self.view.axis is None else self.view.grid[self.view.axis]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of every slice as shown."""
        return self.view.shape

    @property
    def distance(self) -> float:
        """Millimeters from one slice to the next; 1 where the scan does not tell."""
        assert self.view.axis is not None
        return self.scan.spacing[self.view.axis]

    @property
    def pixel_area(self) -> float:
        """Square millimeters of one pixel of a slice."""
        sides = [side for axis, side in enumerate(self.scan.spacing) if axis != self.view.axis]
        return float(np.prod(sides))

    @property
    def number(self) -> int:
        """The number of `view` in the stack."""
        return self.view.index if self.view.position is None else self.view.position

    def at(self, number: int) -> SliceView:
        """The view of one slice.

        Raises:
            InputError: No such slice.
        """
        if self.view.plane is not None:
            return plane_view(self.scan.grid, self.scan.affine, self.view.plane, number)
        assert self.view.axis is not None
        return axis_view(self.scan.grid, self.view.axis, number)

    def pixels(self, number: int) -> npt.NDArray[Any]:
        """One slice as shown: (H, W)."""
        return self.at(number).extract(self.scan.voxels)
