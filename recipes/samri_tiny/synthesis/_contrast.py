"""From labels to an MR-like picture: an intensity for each label, texture, bias field, blur, noise."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from samri_tiny.synthesis._shapes import smooth_field

Floats = npt.NDArray[np.float32]

# FreeSurfer's numbers of a structure on the right, and of the same on the left: one tissue, one intensity.
LEFT_OF_RIGHT = {
    41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18, 57: 25, 58: 26, 60: 28,
    62: 30, 63: 31, 163: 136, 164: 137,
}  # fmt: skip
# FreeSurfer's numbers by what they are made of; what isn't here is outside the brain, or somebody else's numbering.
_FLUID = (4, 5, 14, 15, 24, 72)
_WHITE = (2, 7, 16, 28, 85)
_GREY = (3, 8, 17, 18, 26, 25, 136, 137)
_DEEP = (10, 11, 12, 13)
# Mean intensity ranges of fluid, white, gray and deep gray matter in common sequences.
_SEQUENCES = {
    "T1": ((0.05, 0.25), (0.65, 0.9), (0.4, 0.6), (0.5, 0.7)),
    "T2": ((0.8, 1.0), (0.25, 0.4), (0.45, 0.65), (0.3, 0.5)),
    "FLAIR": ((0.02, 0.15), (0.35, 0.5), (0.5, 0.7), (0.45, 0.65)),
    "PD": ((0.6, 0.9), (0.45, 0.6), (0.6, 0.8), (0.55, 0.7)),
}

SEQUENCE_LIKE = 0.3  # Share of slices with the order of intensities of a common sequence.
FEW_LEVELS = 0.3  # Share in which all labels share a handful of intensities.
BARE = 0.25  # Share without what lies outside the brain.


def tissue_of(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Codes with right turned into left where FreeSurfer tells them apart; others as they are."""
    return np.array([LEFT_OF_RIGHT.get(int(code), int(code)) for code in codes], dtype=np.int64)


def random_levels(codes: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(L,) float32 mean intensity of each label, 0 to 1; labels of one tissue have the same."""
    tissues, members = np.unique(tissue_of(codes), return_inverse=True)
    kind = rng.random()
    levels = rng.uniform(0, 1, len(tissues))
    if kind < FEW_LEVELS:
        few = rng.uniform(0, 1, int(rng.integers(3, 7)))
        levels = few[rng.integers(0, len(few), len(tissues))]
    elif kind < FEW_LEVELS + SEQUENCE_LIKE:
        ranges = _SEQUENCES[str(rng.choice(list(_SEQUENCES)))]
        for tissue, own in zip((_FLUID, _WHITE, _GREY, _DEEP), ranges, strict=True):
            level = rng.uniform(*own)
            of_tissue = np.isin(tissues, tissue)
            levels[of_tissue] = level + rng.normal(0, 0.03, int(of_tissue.sum()))
    if rng.random() < 0.75:
        levels[tissues == 0] = rng.uniform(0, 0.05)
    return np.asarray(levels[members], dtype=np.float32)


def render(labels: npt.NDArray[np.uint8], levels: npt.NDArray[np.float32], rng: np.random.Generator) -> Floats:
    """A picture of labels.

    Args:
        labels: (H, W) uint8, indices into `levels`.
        levels: (L,) mean intensities.
        rng: Where the randomness comes from.

    Returns:
        (H, W) float32, 0 to 1 or a little beyond.
    """
    shape = labels.shape
    picture = levels.take(labels)
    picture = picture + _texture(labels, len(levels), rng)
    picture = picture * np.exp(smooth_field(rng, shape, int(rng.integers(2, 6))) * np.float32(rng.uniform(0, 0.25)))
    picture = _resolution(picture, rng)
    noise = rng.normal(size=shape).astype(np.float32) * np.float32(_noise_level(rng))
    if rng.random() < 0.3:  # Correlated, as after a reconstruction filter or a resampling.
        noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.4, 0.9)) * np.float32(1.5)
    picture = np.abs(picture + noise)
    picture = _outliers(picture, rng)
    low, high = float(picture.min()), float(picture.max())
    picture = (picture - low) / max(high - low, 1e-6)
    picture = picture ** np.float32(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.15:
        picture = 1 - picture
    return np.asarray(picture, dtype=np.float32)


def _texture(labels: npt.NDArray[np.uint8], count: int, rng: np.random.Generator) -> Floats:
    """What makes a tissue uneven: fine and coarse, of another strength in each label."""
    strength = (rng.uniform(0, 0.06, count) * (rng.random(count) < 0.8)).astype(np.float32)
    fine = cv2.GaussianBlur(rng.normal(size=labels.shape).astype(np.float32), (0, 0), rng.uniform(0.8, 2.5)) * 3
    coarse = smooth_field(rng, labels.shape, int(rng.integers(8, 30)))
    return np.asarray(strength.take(labels) * (fine + coarse), dtype=np.float32)


def _resolution(picture: Floats, rng: np.random.Generator) -> Floats:
    """Partial volume: blur, or acquisition on a coarser grid, the same or different along the two axes."""
    kind = rng.random()
    if kind < 0.5:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.1)))
    if kind < 0.85:
        height, width = picture.shape
        coarser = rng.uniform(1.0, 2.8, 2) if rng.random() < 0.5 else np.repeat(rng.uniform(1.0, 2.8), 2)
        small = (max(int(width / coarser[1]), 8), max(int(height / coarser[0]), 8))
        acquired = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        way = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
        return np.asarray(cv2.resize(acquired, (width, height), interpolation=way))
    return picture


def _noise_level(rng: np.random.Generator) -> float:
    """Standard deviation; most scans have little."""
    return float(rng.choice([0.005, 0.015, 0.03, 0.06]) * rng.uniform(0.5, 1.5))


def _outliers(picture: Floats, rng: np.random.Generator) -> Floats:
    """A few bright spots, as fat or a vessel makes them, which take range from everything else."""
    if rng.random() >= 0.3:
        return picture
    height, width = picture.shape
    for _ in range(int(rng.integers(1, 5))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        radius = int(rng.integers(1, max(3, width // 40)))
        cv2.circle(picture, (x, y), radius, float(picture.max() * rng.uniform(1.0, 1.5)), cv2.FILLED, cv2.LINE_AA)
    return picture
