"""A drawn slice: labels from a subject or from shapes, and a picture of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samri_tiny.synthesis._contrast import BARE, random_levels, render
from samri_tiny.synthesis._cuts import random_cut
from samri_tiny.synthesis._label_maps import LabelMap
from samri_tiny.synthesis._shapes import add_lesions, random_shapes

LESIONS = 0.3  # Share of slices of a subject with blobs of new labels in it.
OUTSIDE_BRAIN = 500
"""From this number on, the published maps mean what isn't brain: skull, skin, eyes, muscles."""


@dataclass(frozen=True)
class SyntheticSlice:
    """A picture and what is in it.

    Attributes:
        image: (H, W) uint8.
        labels: (H, W) uint8, indices into `codes` and `levels`.
        codes: (L,) int64, what the labels are called in the map; shapes are numbered from 100, lesions from 200.
        levels: (L,) float32, mean intensity of each label before texture, bias field, blur and noise.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.int64]
    levels: npt.NDArray[np.float32]


def draw_slice(label_map: LabelMap, rng: np.random.Generator, shape: tuple[int, int]) -> SyntheticSlice:
    """A slice of a subject, in a random plane and with random contrast.

    Args:
        label_map: The subject.
        rng: Where the randomness comes from.
        shape: (H, W) in pixels.
    """
    labels = random_cut(label_map, rng, shape)
    codes = label_map.codes
    if rng.random() < BARE:
        bare = labels * (codes < OUTSIDE_BRAIN)[labels]
        labels = bare if np.count_nonzero(bare) > 0.05 * bare.size else labels
    if rng.random() < LESIONS:
        numbered = add_lesions(np.zeros_like(labels) + 1, rng)
        new = (numbered >= 200) & (labels > 0)
        first = len(codes)
        labels = np.where(new, numbered - 200 + first, labels).astype(np.uint8)
        codes = np.concatenate([codes, np.arange(200, 203)])
    return _pictured(labels, codes, rng)


def draw_shapes(rng: np.random.Generator, shape: tuple[int, int]) -> SyntheticSlice:
    """A slice of shapes that aren't anatomy, drawn with the same contrasts.

    Args:
        rng: Where the randomness comes from.
        shape: (H, W) in pixels.
    """
    numbers, labels = np.unique(random_shapes(rng, shape), return_inverse=True)
    codes = numbers.astype(np.int64)
    if codes[0] != 0:  # All of it is covered; index 0 stays background.
        codes, labels = np.concatenate([[0], codes]), labels + 1
    return _pictured(labels.reshape(shape).astype(np.uint8), codes, rng)


def _pictured(labels: npt.NDArray[np.uint8], codes: npt.NDArray[np.int64], rng: np.random.Generator) -> SyntheticSlice:
    levels = random_levels(codes, rng)
    picture = render(labels, levels, rng)
    image = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return SyntheticSlice(image, labels, codes, levels)
