"""Boxes and points: what a person drew, checked against the image, and packed for the decoder.

Everything is (x, y) in pixels of the slice as shown until `to_model_frame` scales it. Floats stay floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import PromptError
from samri.preprocessing import Profile, input_shape

FOREGROUND, BACKGROUND = 1, 0
BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 2, 3
NO_BOX = -1  # A learned token, once in every prompt that has no box.
ABSENT = -2  # No token at all: fills up a batch of prompts of different lengths.

PROMPTS_AT_ONCE = 32
"""More prompts than this are decoded in turns, since each one holds several image-sized arrays."""


def _no_points() -> npt.NDArray[np.float64]:
    return np.zeros((0, 2))


def _no_labels() -> npt.NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one mask is asked with: points, a box, or both.

    Attributes:
        points: (N, 2) float, (x, y) in pixels of the slice as shown.
        labels: (N,) int, 1 for "this belongs to it", 0 for "this doesn't".
        box: (4,) float XYXY in the same pixels, or None.

    Raises:
        PromptError: A shape is wrong, a number isn't finite, a label isn't 0 or 1, or nothing is given.
    """

    points: npt.NDArray[np.float64] = field(default_factory=_no_points)
    labels: npt.NDArray[np.int64] = field(default_factory=_no_labels)
    box: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        points, labels = finite_numbers(self.points, "points"), finite_numbers(self.labels, "point labels")
        if points.ndim != 2 or points.shape[1] != 2:
            raise PromptError(f"points are (N, 2) pairs of x and y, not {points.shape}")
        if labels.shape != (len(points),):
            raise PromptError(f"{len(points)} points need {len(points)} labels, not an array of shape {labels.shape}")
        if not ((labels == FOREGROUND) | (labels == BACKGROUND)).all():
            raise PromptError("a point's label is 1 (belongs to the object) or 0 (doesn't)")
        box = None if self.box is None else finite_numbers(self.box, "box")
        if box is not None and box.shape != (4,):
            raise PromptError(f"a box is four numbers, x1 y1 x2 y2, not an array of shape {box.shape}")
        if not len(points) and box is None:
            raise PromptError("a prompt needs a box or at least one point")
        for name, value in (("points", points), ("labels", labels.astype(np.int64)), ("box", box)):
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls, points: npt.ArrayLike | None = None, labels: npt.ArrayLike | None = None, box: npt.ArrayLike | None = None
    ) -> Prompt:
        """A prompt from lists or arrays; points without labels are foreground.

        Raises:
            PromptError: As the class.

        Example:
            >>> from samri.prompts import Prompt
            >>> prompt = Prompt.of(points=[[20, 30], [5, 5]], labels=[1, 0], box=[10, 12, 60, 45])
            >>> prompt.box, prompt.labels
            (array([10., 12., 60., 45.]), array([1, 0]))
        """
        xy = _no_points() if points is None else finite_numbers(points, "points")
        kinds = np.ones(len(xy) if xy.ndim else 0) if labels is None else finite_numbers(labels, "point labels")
        return cls(xy, kinds.astype(np.float64), None if box is None else finite_numbers(box, "box"))

    def validate(self, shape: tuple[int, int]) -> tuple[Prompt, list[str]]:
        """The prompt with its box clipped to the image, and plain notes on what was clipped.

        Args:
            shape: (H, W) of the slice as shown.

        Raises:
            PromptError: A point outside the image; a box that is reversed, without area or outside the image.
        """
        height, width = shape
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                raise PromptError(f"point ({x:g}, {y:g}) is outside the image, which is {width} wide and {height} high")
        if self.box is None:
            return self, []
        box, note = _clip_box(self.box, shape)
        return replace(self, box=box), [note] if note else []

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for provenance."""
        return {
            "box": None if self.box is None else self.box.tolist(),
            "points": self.points.tolist(),
            "labels": self.labels.tolist(),
        }


def prompts_from_arrays(
    boxes: npt.ArrayLike | None,
    points: npt.ArrayLike | Sequence[npt.ArrayLike] | None,
    labels: npt.ArrayLike | Sequence[npt.ArrayLike] | None,
) -> list[Prompt]:
    """Turn arrays of boxes and points into prompts.

    Args:
        boxes: (B, 4) or (4,) XYXY, or None.
        points: (N, 2) for one prompt, or a sequence of B such arrays of any lengths, or None.
        labels: In the form of `points` without the last axis, or None: every point belongs to its object.

    Returns:
        One prompt for each box or set of points; with both, each box has its own set. Empty when neither is given.

    Raises:
        PromptError: Shapes that don't go together.
    """
    box_rows = None if boxes is None else _rows(finite_numbers(boxes, "boxes"))
    if points is None:
        if labels is not None:
            raise PromptError("point labels were given without points")
        return [Prompt.of(box=box) for box in box_rows or []]
    sets = _sequence(points)
    # An empty list holds no prompt; an array (0, 2) is one prompt without a point.
    none = not sets and finite_numbers(np.asarray(points), "points").ndim < 2
    one_set = not none and (not sets or finite_numbers(sets[0], "points").ndim < 2)
    point_sets: Sequence[Any] = [points] if one_set else sets
    label_sets: Sequence[Any] = [labels] if one_set or labels is None else _sequence(labels)
    if labels is None:
        label_sets = [None] * len(point_sets)
    corners: Sequence[Any] = [None] * len(point_sets) if box_rows is None else box_rows
    if not len(point_sets) == len(label_sets) == len(corners):
        raise PromptError(
            f"{len(point_sets)} sets of points can't be paired with {len(label_sets)} sets of labels "
            f"and {len(corners)} boxes: give each prompt its own"
        )
    return [Prompt.of(*each) for each in zip(point_sets, label_sets, corners, strict=True)]


def to_batch(prompts: Sequence[Prompt]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Turn prompts into one batch, in image pixels: coordinates (B, N, 2) and labels (B, N), float32.

    Per prompt: its points, then the two corners of its box; one (0, 0) with label -1 where there is no box; then
    label -2 (absent) up to the longest prompt's length.
    """
    rows = [_tokens(prompt) for prompt in prompts]
    longest = max((len(labels) for _, labels in rows), default=0)
    coords = np.zeros((len(rows), longest, 2), dtype=np.float32)
    kinds = np.full((len(rows), longest), ABSENT, dtype=np.float32)
    for row, (xy, labels) in enumerate(rows):
        coords[row, : len(labels)] = xy
        kinds[row, : len(labels)] = labels
    return coords, kinds


def to_model_frame(
    coords: npt.ArrayLike, shape: tuple[int, int], profile: Profile, image_size: int
) -> npt.NDArray[np.float32]:
    """Coordinates (..., 2) from pixels of an (H, W) image to the S x S model frame: new over old size, per axis."""
    height, width = input_shape(shape, profile, image_size)
    # float64 until the end, as segment-anything computes it.
    scale = np.array([width / shape[1], height / shape[0]])
    scaled: npt.NDArray[np.float32] = (np.asarray(coords, dtype=np.float64) * scale).astype(np.float32)
    return scaled


def _tokens(prompt: Prompt) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    if prompt.box is None:
        return np.concatenate([prompt.points, np.zeros((1, 2))]), np.append(prompt.labels, NO_BOX)
    corners = prompt.box.reshape(2, 2)
    return np.concatenate([prompt.points, corners]), np.append(prompt.labels, (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT))


def _clip_box(box: npt.NDArray[np.float64], shape: tuple[int, int]) -> tuple[npt.NDArray[np.float64], str | None]:
    height, width = shape
    x1, y1, x2, y2 = box
    named = f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if x1 > x2 or y1 > y2:
        raise PromptError(f"{named} is reversed: give the top left corner, then the bottom right one")
    if x1 == x2 or y1 == y2:
        raise PromptError(f"{named} has no area")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise PromptError(f"{named} lies outside the image, which is {width} wide and {height} high")
    clipped = np.clip(box, 0, (width, height, width, height))
    if np.array_equal(clipped, box):
        return box, None
    inside = ", ".join(f"{value:g}" for value in clipped)
    return clipped, f"{named} reaches beyond the image and was clipped to ({inside})"


def _rows(boxes: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    if boxes.size == 0 and boxes.shape not in ((0,), (0, 4)):
        raise PromptError(f"boxes are (B, 4) numbers x1 y1 x2 y2, not an array of shape {boxes.shape}")
    return [] if boxes.size == 0 else list(np.atleast_2d(boxes))


def _sequence(values: Any) -> Sequence[Any]:
    try:
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError
        return [values[i] for i in range(len(values))]
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise PromptError("points and their labels are arrays, or sequences of arrays, one per prompt") from error


def finite_numbers(values: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    """An array of float64 from whatever a program passes.

    Args:
        values: Numbers, in any shape.
        what: Their name, for the message.

    Raises:
        PromptError: They are no numbers, no regular array, or not finite.
    """
    try:
        array = np.asarray(values)
        numeric = array.dtype.kind in "buif" or (
            # Integers of any length, which numpy keeps as objects.
            array.dtype.kind == "O" and all(isinstance(value, (int, float, np.number)) for value in array.flat)
        )
        if array.size and not numeric:
            raise TypeError
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError, LookupError) as error:
        raise PromptError(f"{what} must be numbers in a regular array") from error
    if not np.isfinite(array).all():
        raise PromptError(f"{what} must be finite numbers, without NaN or infinities")
    return array
