"""What to segment in a drawn slice: labels, their parts, labels merged, everything of one intensity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    parts = list(_parts(drawn.labels, smallest))
    for _ in range(3 * count):
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
    found = [Target(mask, contrast_to_noise(drawn.image, mask)) for mask in _parts(drawn.labels, smallest)]
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


def _candidate(drawn: SyntheticSlice, parts: Sequence[Mask], rng: np.random.Generator, smallest: int) -> Mask | None:
    """Labels with few parts and those with many (fluid, cortex, muscles) both get their share."""
    labels = drawn.labels
    present = np.unique(labels)
    present = present[present > 0]
    if not len(present):
        return None
    label = rng.choice(present)
    kind = rng.random()
    if kind < 0.3:
        return _part(labels == label, rng, smallest)
    if kind < 0.6:
        return _one_of(parts, rng)
    if kind < 0.65:
        return np.asarray(labels == label)
    if kind < 0.8:  # Whatever looks the same.
        alike = np.isclose(drawn.levels, drawn.levels[label], atol=0.02)
        return _part(alike[labels], rng, smallest)
    if kind < 0.92:  # A few labels together.
        others = rng.choice(present, min(int(rng.integers(1, 5)), len(present)), replace=False)
        mask = _part(np.isin(labels, [label, *others]), rng, smallest)
        return _filled(mask) if mask is not None and rng.random() < 0.5 else mask
    mask = _part(labels == label, rng, smallest)
    return None if mask is None else _filled(mask)


def _parts(labels: npt.NDArray[np.uint8], smallest: int) -> Iterator[Mask]:
    """Every connected part of every label, label by label."""
    for label in np.unique(labels[labels > 0]):
        count, components, stats, _ = _components(labels == label)
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] >= smallest:
                yield np.asarray(components == number)


def _part(mask: Mask, rng: np.random.Generator, smallest: int) -> Mask | None:
    """A connected component that is large enough."""
    return _one_of(list(_parts(mask.astype(np.uint8), smallest)), rng)


def _one_of(parts: Sequence[Mask], rng: np.random.Generator) -> Mask | None:
    """Any, larger ones a little more often."""
    if not parts:
        return None
    weights = np.sqrt([np.count_nonzero(part) for part in parts])
    return parts[rng.choice(len(parts), p=weights / weights.sum())]


def _components(mask: Mask) -> tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Of pixels with a common side, as cv2.connectedComponentsWithStats returns them."""
    return cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)  # type: ignore[return-value]


def _filled(mask: Mask) -> Mask:
    """Without its holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled.astype(bool)
