"""What to segment in a drawn slice: labels, their parts, labels merged, everything of one intensity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from samri_tiny.synthesis._draw import SyntheticSlice

Mask = npt.NDArray[np.bool_]

VISIBLE = 1.0
"""The contrast-to-noise ratio from which a structure can be told from its surroundings."""
RING = 3
"""Width in pixels of the surroundings that a structure is compared with."""
LARGEST = 0.8  # Of the picture.
INVISIBLE_KEPT = 0.1  # Share of the invisible candidates that are taken all the same: scans have those too.
_NEIGHBOURHOOD = np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)
_GREY_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True)
class Target:
    """A mask to segment.

    Attributes:
        mask: (H, W) bool.
        contrast: See `contrast_to_noise`.
    """

    mask: Mask
    contrast: float


def pick_targets(drawn: SyntheticSlice, rng: np.random.Generator, count: int, smallest: int) -> list[Target]:
    """Up to `count` targets of all sizes, nearly all of them visible; none if the slice has nothing to offer.

    Args:
        drawn: The slice.
        rng: Where the randomness comes from.
        count: How many.
        smallest: Fewest pixels of a target.
    """
    found: list[Target] = []
    structures = _Structures(drawn.labels, smallest)
    for _ in range(3 * count if structures.present else 0):
        if len(found) == count:
            break
        mask = _candidate(drawn, structures, rng)
        if mask is None or not smallest <= np.count_nonzero(mask) <= LARGEST * mask.size:
            continue
        contrast = contrast_to_noise(drawn.image, mask)
        if contrast >= VISIBLE or rng.random() < INVISIBLE_KEPT:
            found.append(Target(mask, contrast))
    return found


def visible_parts(drawn: SyntheticSlice, smallest: int) -> list[Target]:
    """Every connected part of every label that can be seen, label by label; none overlap.

    Args:
        drawn: The slice.
        smallest: Fewest pixels of a part.
    """
    masks = [part.mask(drawn.labels.shape) for part in _Structures(drawn.labels, smallest).all_parts]
    found = [Target(mask, contrast_to_noise(drawn.image, mask)) for mask in masks]
    return [target for target in found if target.contrast >= VISIBLE]


def contrast_to_noise(image: npt.NDArray[np.uint8], mask: Mask) -> float:
    """|mean inside - mean of the surroundings| / standard deviation, pooled as sqrt((var inside + var around) / 2).

    The surroundings are a ring of `RING` pixels; 0 when there is none.

    Args:
        image: (H, W) uint8.
        mask: (H, W) bool.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    top, left = max(y - RING, 0), max(x - RING, 0)
    near = (slice(top, y + height + RING), slice(left, x + width + RING))
    inside, values = mask[near], image[near]
    around = cv2.dilate(inside.view(np.uint8), _NEIGHBOURHOOD) > inside
    own, other = values[inside], values[around]
    if not own.size or not other.size:
        return 0.0
    (own_mean, own_variance), (other_mean, other_variance) = _mean_and_variance(own), _mean_and_variance(other)
    return float(abs(own_mean - other_mean) / max(np.sqrt((own_variance + other_variance) / 2), 1e-6))


def _mean_and_variance(values: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """To the last bit what NumPy has for the values as float64, in less time: there are only 256 deviations."""
    mean = cv2.sumElems(values)[0] / values.size
    squares = cv2.LUT(values, (_GREY_LEVELS - mean) ** 2)
    return mean, float(squares.ravel().sum()) / values.size


@dataclass(frozen=True, eq=False)
class _Part:
    """A connected part: where `components`, numbers of parts in a window of the picture, is `number`."""

    window: tuple[slice, slice]
    components: npt.NDArray[np.int32]
    number: int
    pixels: int

    def mask(self, shape: tuple[int, ...]) -> Mask:
        mask = np.zeros(shape, bool)
        mask[self.window] = self.components == self.number
        return mask


class _Structures:
    """The connected parts of a slice's labels that are large enough; of labels together, looked for when asked for.

    Attributes:
        labels: (H, W) uint8.
        present: The labels that are there, ascending; not the background.
        all_parts: Parts of every label, label by label.
    """

    def __init__(self, labels: npt.NDArray[np.uint8], smallest: int) -> None:
        self.labels = labels
        self._smallest = smallest
        self._found: dict[tuple[int, ...], list[_Part]] = {}
        self._used = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel() > 0
        self.present: list[int] = (np.flatnonzero(self._used[1:]) + 1).tolist()
        self.all_parts = [part for label in self.present for part in self.parts([label])]

    def parts(self, labels: Iterable[int]) -> list[_Part]:
        """The connected parts of some labels together; one of them at least is there."""
        together = tuple(sorted({int(label) for label in labels if self._used[label]}))
        if together not in self._found:
            mask = self.labels == together[0]
            for label in together[1:]:
                mask |= self.labels == label
            self._found[together] = _parts(mask, self._smallest)
        return self._found[together]


def _candidate(drawn: SyntheticSlice, structures: _Structures, rng: np.random.Generator) -> Mask | None:
    """Labels with few parts and those with many (fluid, cortex, muscles) both get their share."""
    shape, present = drawn.labels.shape, structures.present
    label = present[rng.integers(len(present))]
    kind = rng.random()
    if kind < 0.3:
        return _one_of(structures.parts([label]), shape, rng)
    if kind < 0.6:
        return _one_of(structures.all_parts, shape, rng)
    if kind < 0.65:
        return np.asarray(drawn.labels == label)
    if kind < 0.8:  # Whatever looks the same.
        alike = np.isclose(drawn.levels, drawn.levels[label], atol=0.02)
        return _one_of(structures.parts(np.flatnonzero(alike)), shape, rng)
    if kind < 0.92:  # A few labels together.
        others = rng.choice(present, min(int(rng.integers(1, 5)), len(present)), replace=False)
        mask = _one_of(structures.parts([label, *others]), shape, rng)
        return _filled(mask) if mask is not None and rng.random() < 0.5 else mask
    mask = _one_of(structures.parts([label]), shape, rng)
    return None if mask is None else _filled(mask)


def _parts(mask: Mask, smallest: int) -> list[_Part]:
    """The connected parts of a mask, which isn't empty, that are large enough."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    window = (slice(y, y + height), slice(x, x + width))
    inside = mask[window]
    # Pixels are connected by their sides. OpenCV could count them as well, but takes three times as long for it.
    count, components = cv2.connectedComponents(inside.view(np.uint8), connectivity=4)
    numbered, sizes = np.asarray(components, np.int32), np.bincount(components[inside]).tolist()
    return [_Part(window, numbered, number, sizes[number]) for number in range(1, count) if sizes[number] >= smallest]


def _one_of(parts: Sequence[_Part], shape: tuple[int, ...], rng: np.random.Generator) -> Mask | None:
    """Any, larger ones a little more often."""
    if not parts:
        return None
    weights = np.sqrt([part.pixels for part in parts])
    upto = (weights / weights.sum()).cumsum()
    # The same draw as rng.choice's, which spends most of its time on checks of its arguments.
    chosen = int((upto / upto[-1]).searchsorted(rng.random(), side="right"))
    return parts[chosen].mask(shape)


def _filled(mask: Mask) -> Mask:
    """Without its holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled.astype(bool)
