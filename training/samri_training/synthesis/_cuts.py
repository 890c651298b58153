"""A random plane through a label map: near an axis or oblique, bent, at any magnification, smooth at its edges."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from samri_training.synthesis._label_maps import LabelMap

# Millimetres a pixel of a drawn slice, for a frame of 256 pixels: from a magnified crop to a whole body part.
PIXEL_MM = (0.3, 1.3)
OBLIQUE = 0.3  # Share of planes of any orientation; the others are within TILT degrees of an axis.
TILT = 15.0
BENDING = 0.06  # Largest displacement, as a fraction of the frame.
_ATTEMPTS = 8
_LEAST_CONTENT = 0.15  # Of the frame, not background.


def random_cut(label_map: LabelMap, rng: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(H, W) uint8 of the map's label indices, in a plane that shows something.

    Args:
        label_map: The subject.
        rng: Where the randomness comes from.
        shape: (H, W) of the slice.
    """
    cut = np.zeros(shape, np.uint8)
    for _ in range(_ATTEMPTS):
        pixel_mm = float(np.exp(rng.uniform(*np.log(PIXEL_MM))))
        cut = _cut(label_map, rng, shape, pixel_mm)
        if np.count_nonzero(cut) >= _LEAST_CONTENT * cut.size:
            break
    return cut


def _cut(
    label_map: LabelMap, rng: np.random.Generator, shape: tuple[int, int], pixel_mm: float
) -> npt.NDArray[np.uint8]:
    # Sampled no finer than the map itself; what is magnified is smoothed on its way to the slice's own grid.
    finest = float(label_map.spacing.min())
    step = max(pixel_mm, finest)
    coarse = tuple(int(np.ceil(side * pixel_mm / step)) + 1 for side in shape)
    rows, columns = np.meshgrid(*(np.arange(side) - (side - 1) / 2 for side in coarse), indexing="ij")
    in_plane = np.stack([rows, columns], axis=-1) + _bend(rng, coarse)
    axes = _plane(rng)
    size = np.array(label_map.labels.shape)
    center = size * rng.uniform(0.15, 0.85, 3)
    places = np.rint(center + (in_plane * step) @ axes[:2] / label_map.spacing).astype(np.int64)
    inside = np.asarray(((places >= 0) & (places < size)).all(axis=-1))
    flat = np.ravel_multi_index(tuple(np.moveaxis(np.where(inside[..., None], places, 0), -1, 0)), size)
    sampled = np.where(inside, label_map.labels.ravel()[flat], 0).astype(np.uint8)
    if step <= pixel_mm:
        return sampled[: shape[0], : shape[1]]
    return magnify(sampled, shape, pixel_mm / step)


def magnify(labels: npt.NDArray[np.uint8], shape: tuple[int, int], pixels: float) -> npt.NDArray[np.uint8]:
    """Labels on a finer grid with smooth edges: each label's indicator is blurred and interpolated, the largest wins.

    Args:
        labels: (h, w) uint8.
        shape: (H, W) wanted.
        pixels: Coarse pixels that a fine one spans, below 1.
    """
    to_coarse = np.array([[pixels, 0, (pixels - 1) / 2], [0, pixels, (pixels - 1) / 2]])
    winner = np.zeros(shape, np.uint8)
    highest = np.full(shape, -1.0, np.float32)
    for label in np.unique(labels):
        indicator = cv2.GaussianBlur((labels == label).astype(np.float32), (0, 0), 0.7)
        fine = cv2.warpAffine(
            indicator,
            to_coarse,
            shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        higher = fine > highest
        winner[higher] = label
        np.maximum(highest, fine, out=highest)
    return winner


def _plane(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(3, 3) orthonormal rows: down the slice, across it, and through it."""
    if rng.random() < OBLIQUE:
        axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        return np.asarray(axes)
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)[:, None]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = np.radians(rng.uniform(-TILT, TILT))
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        axes = turn @ axes
    return np.asarray(axes)


def _bend(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """(h, w, 2) displacement in pixels, smooth."""
    knots = int(rng.integers(3, 8))
    coarse = rng.normal(size=(knots, knots, 2)).astype(np.float32)
    amplitude = rng.uniform(0, BENDING) * max(shape) * 2 / knots
    return np.asarray(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)) * np.float32(amplitude)
