"""A random plane through a label map: near an axis or oblique, bent, at any magnification, smooth at its edges."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from samri_tiny.synthesis._label_maps import LabelMap

# Millimetres a pixel of a drawn slice, for a frame of 256 pixels: from a magnified crop to a whole body part.
PIXEL_MM = (0.3, 1.3)
OBLIQUE = 0.3  # Share of planes of any orientation; the others are within TILT degrees of an axis.
TILT = 15.0
BENDING = 0.06  # Largest displacement, as a fraction of the frame.
_BLUR_REACH = 5  # Coarse pixels: 3 of the blur itself, one of the interpolation, one for the grids' offset.
_TOGETHER = 4  # Labels magnified at once: OpenCV warps four channels in little more time than one.
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
    center = np.array(label_map.labels.shape) * rng.uniform(0.15, 0.85, 3)
    sampled = _nearest(label_map, (in_plane * step) @ axes[:2], center)
    if step <= pixel_mm:
        return sampled[: shape[0], : shape[1]]
    return magnify(sampled, shape, pixel_mm / step)


def _nearest(
    label_map: LabelMap, moved: npt.NDArray[np.float64], center: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint8]:
    """(h, w) uint8, the labels (h, w, 3) mm away from a voxel; background outside the map."""
    flat = np.zeros(moved.shape[:2], np.int64)
    inside = np.ones(moved.shape[:2], bool)
    # Axis by axis: NumPy is slow where the last axis has three numbers.
    for axis, side in enumerate(label_map.labels.shape):
        place = np.rint(center[axis] + moved[..., axis] / label_map.spacing[axis]).astype(np.int64)
        inside &= (place >= 0) & (place < side)
        flat = flat * side + place
    flat[~inside] = 0
    return np.asarray(label_map.labels.ravel().take(flat) * inside)


def magnify(labels: npt.NDArray[np.uint8], shape: tuple[int, int], pixels: float) -> npt.NDArray[np.uint8]:
    """Labels on a finer grid with smooth edges: each label's indicator is blurred and interpolated, the largest wins.

    Args:
        labels: (h, w) uint8.
        shape: (H, W) wanted.
        pixels: Coarse pixels that a fine one spans, below 1.
    """
    to_coarse = np.array([[pixels, 0, (pixels - 1) / 2], [0, pixels, (pixels - 1) / 2]])
    present = np.flatnonzero(np.bincount(labels.ravel()))
    winner = np.full(shape, present[0], np.uint8)
    highest = np.zeros(shape, np.float32)
    for first in range(0, len(present), _TOGETHER):
        group = {label: labels == label for label in present[first : first + _TOGETHER]}
        indicators = np.zeros((*labels.shape, _TOGETHER), np.float32)
        for channel, own in enumerate(group.values()):
            indicators[..., channel] = cv2.GaussianBlur(own.astype(np.float32), (0, 0), 0.7)
        fine = cv2.warpAffine(
            indicators,
            to_coarse,
            shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for channel, (label, own) in enumerate(group.items()):
            reach = _reach(own, pixels)
            of_label, so_far = fine[(*reach, channel)].copy(), highest[reach]
            winner[reach][of_label > so_far] = label
            np.maximum(so_far, of_label, out=so_far)
    return winner


def _reach(label: npt.NDArray[np.bool_], pixels: float) -> tuple[slice, slice]:
    """The rows and columns of the finer grid outside which a label's blurred indicator is zero."""
    x, y, width, height = cv2.boundingRect(label.view(np.uint8))
    first_row, first_column = (max(int((first - _BLUR_REACH) / pixels), 0) for first in (y, x))
    last_row, last_column = (int((last + _BLUR_REACH) / pixels) for last in (y + height, x + width))
    return slice(first_row, last_row + 1), slice(first_column, last_column + 1)


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
