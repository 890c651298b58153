"""What to segment in a drawn slice: labels, their parts, labels merged, everything of one intensity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from samri_training.synthesis._draw import SyntheticSlice

Mask = npt.NDArray[np.bool_]

VISIBLE = 1.0
"""The contrast-to-noise ratio from which a structure can be told from its surroundings."""
RING = 3
"""Width in pixels of the surroundings that a structure is compared with."""
LARGEST = 0.8  # Of the picture.
INVISIBLE_KEPT = 0.1  # Share of the invisible candidates that are taken all the same: scans have those too.


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
    parts = _parts_by_label(drawn.labels, smallest)
    for _ in range(3 * count if parts else 0):
        if len(found) == count:
            break
        mask = _candidate(drawn, parts, rng, smallest)
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
    parts = [part for of_label in _parts_by_label(drawn.labels, smallest).values() for part in of_label]
    masks = [part.mask(drawn.labels.shape) for part in parts]
    found = [Target(mask, contrast_to_noise(drawn.image, mask)) for mask in masks]
    return [target for target in found if target.contrast >= VISIBLE]


def contrast_to_noise(image: npt.NDArray[np.uint8], mask: Mask) -> float:
    """|mean inside - mean of the surroundings| / standard deviation, pooled as sqrt((var inside + var around) / 2).

    The surroundings are a ring of `RING` pixels; 0 when there is none.

    Args:
        image: (H, W) uint8.
        mask: (H, W) bool.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    top, left = max(y - RING, 0), max(x - RING, 0)
    near = (slice(top, y + height + RING), slice(left, x + width + RING))
    inside = mask[near]
    around = cv2.dilate(inside.astype(np.uint8), np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)).astype(bool) & ~inside
    if not around.any() or not inside.any():
        return 0.0
    values = image[near].astype(np.float64)
    own, other = values[inside], values[around]
    return float(abs(own.mean() - other.mean()) / max(np.sqrt((own.var() + other.var()) / 2), 1e-6))


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


def _candidate(
    drawn: SyntheticSlice, parts: Mapping[int, Sequence[_Part]], rng: np.random.Generator, smallest: int
) -> Mask | None:
    """Labels with few parts and those with many (fluid, cortex, muscles) both get their share."""
    labels, present = drawn.labels, list(parts)
    label = int(rng.choice(present))
    kind = rng.random()
    if kind < 0.3:
        return _one_of(parts[label], labels.shape, rng)
    if kind < 0.6:
        return _one_of([part for of_label in parts.values() for part in of_label], labels.shape, rng)
    if kind < 0.65:
        return np.asarray(labels == label)
    if kind < 0.8:  # Whatever looks the same.
        alike = np.isclose(drawn.levels, drawn.levels[label], atol=0.02)
        return _one_of(_parts(alike[labels], smallest), labels.shape, rng)
    if kind < 0.92:  # A few labels together.
        others = rng.choice(present, min(int(rng.integers(1, 5)), len(present)), replace=False)
        together = np.isin(np.arange(len(drawn.levels)), [label, *others])
        mask = _one_of(_parts(together[labels], smallest), labels.shape, rng)
        return _filled(mask) if mask is not None and rng.random() < 0.5 else mask
    mask = _one_of(parts[label], labels.shape, rng)
    return None if mask is None else _filled(mask)


def _parts_by_label(labels: npt.NDArray[np.uint8], smallest: int) -> dict[int, list[_Part]]:
    """Of every label that is there, its connected parts that are large enough."""
    from scipy import ndimage

    windows = enumerate(ndimage.find_objects(labels), start=1)
    return {label: _parts(labels == label, smallest, window) for label, window in windows if window is not None}


def _parts(mask: Mask, smallest: int, window: tuple[slice, slice] = np.s_[:, :]) -> list[_Part]:
    """The connected parts of a mask that are large enough; nothing of it is outside the window."""
    # Pixels are connected by their sides.
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask[window].astype(np.uint8), connectivity=4)
    numbered, sizes = np.asarray(components, np.int32), stats[:, cv2.CC_STAT_AREA].tolist()
    return [_Part(window, numbered, number, sizes[number]) for number in range(1, count) if sizes[number] >= smallest]


def _one_of(parts: Sequence[_Part], shape: tuple[int, ...], rng: np.random.Generator) -> Mask | None:
    """Any, larger ones a little more often."""
    if not parts:
        return None
    weights = np.sqrt([part.pixels for part in parts])
    return parts[rng.choice(len(parts), p=weights / weights.sum())].mask(shape)


def _filled(mask: Mask) -> Mask:
    """Without its holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled.astype(bool)
