"""What a session holds between two edits: objects, their prompts, and their masks slice by slice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import SliceView
from samri.io import PALETTE
from samri.prompts import FOREGROUND, Prompt
from samri_runtime.session._edits import SlicePosition
from samri_runtime.volume._shapes import bounding_box

SliceKey = tuple[int | None, int]
"""Array axis and index of a slice, however it is shown."""

_MOST_OBJECTS = 65_535


@dataclass(frozen=True)
class SlicePrompts:
    """The prompts of one object on one slice.

    Attributes:
        box: XYXY, or None.
        drawn: The box was drawn by a person; otherwise it is that of the mask that the first point corrected.
        points: (x, y, label).
        candidate: The model's candidate that was chosen, 1 to 3; None for its single mask.
    """

    box: tuple[float, ...] | None = None
    drawn: bool = False
    points: tuple[tuple[float, float, int], ...] = ()
    candidate: int | None = None

    def __bool__(self) -> bool:
        return self.box is not None or bool(self.points)

    def prompt(self, shape: tuple[int, int]) -> Prompt:
        """What the decoder is asked. A box that nobody drew grows with the points inside the object."""
        box = self.box
        if box is not None and not self.drawn:
            inside = np.array([(x, y) for x, y, label in self.points if label == FOREGROUND]).reshape(-1, 2)
            low, high = np.array(box).reshape(2, 2)
            size = np.array(shape[::-1], np.float64)
            box = (
                *np.minimum(low, inside.min(axis=0, initial=np.inf)).clip(0, size),
                *np.maximum(high, inside.max(axis=0, initial=-np.inf) + 1).clip(0, size),
            )
        points = np.array([point[:2] for point in self.points]).reshape(-1, 2)
        return Prompt.of(points, [point[2] for point in self.points], box)


@dataclass(frozen=True, eq=False)
class SliceMask:
    """All of one object on one slice.

    Attributes:
        view: The slice.
        corner: Row and column, as shown, of the part that is stored.
        logits: (h, w) float32, above 0 inside the object and 0 outside.
    """

    view: SliceView
    corner: tuple[int, int]
    logits: npt.NDArray[np.float32]

    @staticmethod
    def of(view: SliceView, mask: npt.NDArray[np.bool_], logits: npt.NDArray[np.float32]) -> SliceMask:
        """From a mask (H, W) of the slice as shown, and the logits of its pixels."""
        if not mask.any():
            return SliceMask.empty(view)
        left, top, right, bottom = bounding_box(mask).astype(int)
        inside = (slice(top, bottom), slice(left, right))
        return SliceMask(view, (int(top), int(left)), np.where(mask[inside], logits[inside], np.float32(0)))

    @staticmethod
    def empty(view: SliceView) -> SliceMask:
        """A slice without the object."""
        return SliceMask(view, (0, 0), np.zeros((0, 0), np.float32))

    def draw(self, volume: npt.NDArray[np.float32]) -> None:
        """Put the slice into a volume of logits."""
        shown = self.view.extract(volume)  # What is written here is written there.
        shown[...] = 0
        self.part_of(shown)[...] = self.logits

    def part_of(self, shown: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The part of a slice as shown, (H, W), that is stored."""
        (row, column), (height, width) = self.corner, self.logits.shape
        return shown[row : row + height, column : column + width]


@dataclass(frozen=True, eq=False)
class SessionObject:
    """One object of a session. Don't change what its mappings hold.

    Attributes:
        name: What it is called.
        label: Its number in the label map.
        color: `#rrggbb`.
        prompts: By the slice that they were given on.
        scores: The model's own estimate of the IoU, by slice; slices from a label map have none.
        weak: Slices of the last propagation that need a look.
        ends: Why the last propagation stopped: direction, 1 or -1, to the reason.
        masks: By slice, in the order in which they were made.
    """

    name: str
    label: int
    color: str
    prompts: Mapping[SlicePosition, SlicePrompts] = field(default_factory=dict)
    scores: Mapping[SlicePosition, float] = field(default_factory=dict)
    weak: tuple[SlicePosition, ...] = ()
    ends: Mapping[int, str] = field(default_factory=dict)
    masks: Mapping[SliceKey, SliceMask] = field(default_factory=dict, repr=False)

    def with_masks(self, masks: Iterable[SliceMask], **changes: Any) -> SessionObject:
        """The object with these slices drawn over what it had there."""
        new = {(mask.view.axis, mask.view.index): mask for mask in masks}
        earlier = {key: mask for key, mask in self.masks.items() if key not in new}
        return replace(self, masks={**earlier, **new}, **changes)

    @property
    def one_axis(self) -> bool:
        """All slices with masks are parallel, so that none crosses another."""
        return len({axis for axis, _ in self.masks}) <= 1

    def slice_mask(self, view: SliceView) -> npt.NDArray[np.bool_]:
        """(H, W) of a slice as shown: the object there."""
        same = self.masks.get((view.axis, view.index))
        if self.one_axis and (not self.masks or next(iter(self.masks))[0] == view.axis):
            if same is None:
                return np.zeros(view.shape, np.bool_)
            if same.view == view:
                shown = np.zeros(view.shape, np.bool_)
                same.part_of(shown)[...] = same.logits > 0
                return shown
        return view.extract(self.logits(view.grid)) > 0

    def logits(self, grid: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """In the scan's grid: above 0 inside the object, 0 outside."""
        volume = np.zeros(grid, np.float32, order="F")
        for mask in self.masks.values():
            mask.draw(volume)
        return volume


@dataclass(frozen=True)
class State:
    """All objects, by name, in the order in which they were added."""

    objects: Mapping[str, SessionObject] = field(default_factory=dict)

    def with_object(self, changed: SessionObject) -> State:
        """The state with this object in place of the one of its name, or as a further one."""
        return State({**self.objects, changed.name: changed})

    def without(self, name: str) -> State:
        """The state without an object."""
        return State({other: each for other, each in self.objects.items() if other != name})

    def get(self, name: str) -> SessionObject:
        """An object by its name.

        Raises:
            InputError: There is none.
        """
        if name not in self.objects:
            names = ", ".join(map(repr, self.objects)) or "no objects yet"
            raise InputError(f"there is no object {name!r}; the session has {names}")
        return self.objects[name]

    def new(self, name: str, color: str | None = None, label: int | None = None) -> SessionObject:
        """A further object: with this label if it is free, in the color of its label unless one is given.

        Raises:
            InputError: There is one of that name, or no label is free.
        """
        if name in self.objects:
            raise InputError(f"there is an object {name!r} already: give each its own name")
        used = {each.label for each in self.objects.values()}
        if label is None or label in used:
            label = max(used, default=0) + 1
        if label > _MOST_OBJECTS:
            raise InputError(f"labels go to {_MOST_OBJECTS}: remove an object with a high label first")
        return SessionObject(name, label, color or _palette(label))

    def label_map(self, grid: tuple[int, ...]) -> npt.NDArray[Any]:
        """uint8 or uint16 in the scan's grid; where objects overlap, the higher logit wins, the first in a tie."""
        highest_label = max((each.label for each in self.objects.values()), default=0)
        labels: npt.NDArray[Any] = np.zeros(
            grid, np.uint8 if highest_label <= np.iinfo(np.uint8).max else np.uint16, order="F"
        )
        highest = np.zeros(grid, np.float32, order="F")
        for each in self.objects.values():
            if each.one_axis:
                pieces = [
                    (mask.logits, mask.part_of(mask.view.extract(highest)), mask.part_of(mask.view.extract(labels)))
                    for mask in each.masks.values()
                ]
            else:
                pieces = [(each.logits(grid), highest, labels)]
            for logits, surest, drawn in pieces:
                higher = logits > surest
                np.copyto(surest, logits, where=higher)
                np.copyto(drawn, labels.dtype.type(each.label), where=higher)
        return labels


def _palette(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*PALETTE[(label - 1) % len(PALETTE)])
