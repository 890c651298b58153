"""Images, prompts and tolerances for comparing two implementations of the same model."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from samri.prompts import Prompt

PromptKind = Literal["box", "point", "points", "box and point", "box and points"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)

IMAGE_SHAPES = [(180, 120), (120, 200), (128, 128), (300, 260), (233, 197), (40, 64)]
"""Portrait, landscape, the model's own size, larger, a T1 template's slice, and small."""


def picture(shape: tuple[int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Blobs with noise, using all of 0 to 255."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), min(shape) / 12)
    field = field / field.std() + 0.15 * rng.normal(size=shape)
    return np.rint((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)


def prompt_of(kind: PromptKind, shape: tuple[int, int], variant: int) -> Prompt:
    """A prompt at fractions of the image that depend on `variant`, with coordinates that are no whole pixels."""
    # Of the seeds 1 to 6 the one with which every reference mask, candidates included, covers a part of its image; with
    # the others, one to three of them covered too little or too much.
    rng = np.random.default_rng([5, PROMPT_KINDS.index(kind), variant])
    height, width = shape
    x1, y1 = rng.uniform(0.05, 0.4, 2) * (width, height)
    x2, y2 = rng.uniform(0.6, 0.95, 2) * (width, height)
    count = {"box": 0, "point": 1, "points": 3, "box and point": 1, "box and points": 3}[kind]
    points = rng.uniform(0.1, 0.9, (count, 2)) * (width, height)
    labels = [1, 0, 1][:count]
    return Prompt.of(points if count else None, labels if count else None, [x1, y1, x2, y2] if "box" in kind else None)


def agree(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> None:
    """Within 1e-3 of the reference's range; of masks at the image's size, also Dice of at least 0.999."""
    assert ours.shape == theirs.shape
    tolerance = 1e-3 * max(float(np.ptp(theirs)), 0.1)  # A single score has no range.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    if theirs.ndim == 3:
        for one, other in zip(ours > 0, theirs > 0, strict=True):
            both = one.sum() + other.sum()
            assert both == 0 or 2 * (one & other).sum() / both >= 0.999


def covers_a_part(mask: npt.NDArray[np.bool_]) -> None:
    """Between 5 and 95 % of the image: an empty or full mask proves nothing."""
    assert 0.05 <= mask.mean() <= 0.95, f"the reference mask covers {mask.mean():.1%}"
