"""Labels that aren't anatomy: shapes, blobs, cells and tubes, so that a model doesn't know brains alone."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.uint8]


def random_shapes(rng: np.random.Generator, shape: tuple[int, int]) -> Labels:
    """(H, W) uint8: 0 background, and a number for each thing drawn over it, later over earlier."""
    labels = _ground(rng, shape)
    for number in range(int(rng.integers(2, 14))):
        label = 100 + number
        draw = (_ellipse, _polygon, _tube, _blobs)[rng.choice(4, p=[0.35, 0.25, 0.15, 0.25])]
        draw(labels, label, rng)
    return labels


def add_lesions(labels: Labels, rng: np.random.Generator) -> Labels:
    """The same labels with up to three blobs of new ones inside what isn't background."""
    blobs = np.zeros_like(labels)
    for number in range(int(rng.integers(1, 4))):
        (_ellipse, _polygon)[rng.integers(2)](blobs, 200 + number, rng, largest=0.12)
    return np.asarray(np.where((blobs > 0) & (labels > 0), blobs, labels))


def _ground(rng: np.random.Generator, shape: tuple[int, int]) -> Labels:
    """Nothing, cells around random points, or the level sets of a smooth field."""
    kind = rng.random()
    if kind < 0.35:
        return np.zeros(shape, np.uint8)
    if kind < 0.65:
        count = int(rng.integers(3, 25))
        seeds = rng.uniform(0, 1, (count, 2)) * shape
        rows, columns = np.indices(shape)
        bend = smooth_field(rng, shape, 6) * 0.05 * max(shape)
        squared = [(rows + bend - y) ** 2 + (columns - bend - x) ** 2 for y, x in seeds]
        return np.asarray(np.argmin(squared, axis=0), dtype=np.uint8)
    field = smooth_field(rng, shape, int(rng.integers(3, 14)))
    levels = np.sort(rng.normal(0, 0.6, int(rng.integers(1, 4))))
    return np.digitize(field, levels).astype(np.uint8)


def _ellipse(labels: Labels, label: int, rng: np.random.Generator, largest: float = 0.35) -> None:
    radii = np.exp(rng.uniform(np.log(0.015), np.log(largest), 2)) * max(labels.shape)
    cv2.ellipse(labels, (_middle(labels, rng), tuple(2 * radii), rng.uniform(0, 180)), label, cv2.FILLED)


def _polygon(labels: Labels, label: int, rng: np.random.Generator, largest: float = 0.35) -> None:
    """A star-shaped outline whose radius wanders, with straight or round sides."""
    corners = int(rng.integers(3, 12))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    size = np.exp(rng.uniform(np.log(0.03), np.log(largest))) * max(labels.shape)
    radii = size * rng.uniform(0.35, 1.0, corners)
    if rng.random() < 0.5:
        many = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        angles, radii = many, np.interp(many, angles, radii, period=2 * np.pi)
        radii = np.asarray(cv2.blur(np.tile(radii, 3)[None], (9, 1)))[0, 64:128]
    middle = np.array(_middle(labels, rng))
    outline = middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(labels, [np.rint(outline * 16).astype(np.int32)], label, shift=4)


def _tube(labels: Labels, label: int, rng: np.random.Generator) -> None:
    """A curved band of one width: a vessel, a sulcus, a cartilage."""
    steps = int(rng.integers(10, 60))
    turns = np.cumsum(rng.normal(0, 0.12, steps)) + rng.uniform(0, 2 * np.pi)
    length = rng.uniform(0.01, 0.03) * max(labels.shape)
    way = np.cumsum(length * np.stack([np.cos(turns), np.sin(turns)], axis=1), axis=0)
    way += np.array(_middle(labels, rng))
    width = int(np.clip(np.exp(rng.uniform(np.log(0.01), np.log(0.08))) * max(labels.shape), 2, 40))
    cv2.polylines(labels, [np.rint(way * 16).astype(np.int32)], False, label, width, shift=4)


def _blobs(labels: Labels, label: int, rng: np.random.Generator) -> None:
    """The peaks of a smooth field, inside a disc."""
    peaks = smooth_field(rng, labels.shape, int(rng.integers(5, 24))) > rng.uniform(0.5, 1.2)
    disc = np.zeros_like(labels)
    radius = int(rng.uniform(0.08, 0.4) * max(labels.shape))
    x, y = _middle(labels, rng)
    cv2.circle(disc, (int(x), int(y)), radius, 1, cv2.FILLED)
    labels[peaks & (disc > 0)] = label


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], knots: int) -> npt.NDArray[np.float32]:
    """(H, W) float32, about standard normal, with `knots` random values across."""
    coarse = rng.normal(size=(knots, knots)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _middle(labels: Labels, rng: np.random.Generator) -> tuple[float, float]:
    """(x, y) anywhere in the picture."""
    return float(rng.uniform(0, labels.shape[1])), float(rng.uniform(0, labels.shape[0]))
