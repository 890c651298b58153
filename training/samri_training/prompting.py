"""Prompts sampled from masks, for training and for evaluation: the box or point that a user might give.

Everything is (x, y) in pixels of the slice itself, as at inference, never on a coarser grid. All randomness comes from
the generator that is passed in; one keyed by seed, epoch and sample does not depend on ranks or workers.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from samri.errors import PromptError
from samri.prompts import Prompt

PromptKind = Literal["box", "point", "mixed"]
PROMPT_KINDS: tuple[PromptKind, ...] = get_args(PromptKind)

JITTER_FRAME = 256  # The published jitter is in pixels of an image whose longest side has this many.
JITTER = 10.0
JITTER_MIN_EXTENT = 20.0  # Only longer extents are jittered, so that no box can lose its area.

POINT_RANGE = (0.45, 0.55)  # Fractions of the mask's pixels in raster order.


def sample_prompt(
    mask: npt.NDArray[np.bool_], kind: PromptKind, rng: np.random.Generator, jitter: bool = False
) -> Prompt:
    """The prompt of that kind for a mask; `mixed` is a box and a point together.

    Args:
        mask: (H, W) bool.
        kind: What to sample.
        rng: Where the randomness comes from.
        jitter: Move the box's sides, as in training; see `sample_box`.

    Raises:
        PromptError: The mask is empty.
    """
    box = None if kind == "point" else sample_box(mask, rng, jitter)
    points = np.zeros((0, 2)) if kind == "box" else sample_point(mask, rng)[None]
    return Prompt(points, np.ones(len(points), np.int64), box)


def sample_box(mask: npt.NDArray[np.bool_], rng: np.random.Generator, jitter: bool = False) -> npt.NDArray[np.float64]:
    """The tight box of a mask, (4,) XYXY at pixel edges: [xmin, ymin, xmax + 1, ymax + 1], so never without area.

    With `jitter`, per axis, if the box is longer than 20 pixels, each of its two sides moves by U[-10, 10] pixels and
    is clipped to the image. Those pixels are of the image shrunk to a longest side of 256, and need not be whole ones.

    Args:
        mask: (H, W) bool.
        rng: Where the randomness comes from; four numbers are drawn with `jitter`, none without.
        jitter: Move the sides.

    Raises:
        PromptError: The mask is empty.
    """
    height, width = mask.shape
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        raise PromptError("the mask is empty: there is nothing to prompt for")
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    if jitter:
        pixel = max(height, width) / JITTER_FRAME
        moved = box + rng.uniform(-JITTER, JITTER, 4) * pixel
        long_enough = np.tile(box[2:] - box[:2] > JITTER_MIN_EXTENT * pixel, 2)
        box = np.clip(np.where(long_enough, moved, box), 0, (width, height, width, height))
    return box


def sample_point(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A pixel of the mask from the middle of its raster order (45-55 %), as (2,) x, y.

    Args:
        mask: (H, W) bool.
        rng: Where the randomness comes from; one number is drawn.

    Raises:
        PromptError: The mask is empty.
    """
    # Counting rows first finds the pixel without listing all of them.
    up_to_row = np.cumsum(np.count_nonzero(mask, axis=1))
    total = int(up_to_row[-1])
    if total == 0:
        raise PromptError("the mask is empty: there is nothing to prompt for")
    first = int(POINT_RANGE[0] * total)
    rank = int(rng.integers(first, max(int(np.ceil(POINT_RANGE[1] * total)), first + 1)))
    row = int(np.searchsorted(up_to_row, rank, side="right"))
    before = int(up_to_row[row - 1]) if row else 0
    return np.array([np.flatnonzero(mask[row])[rank - before], row], dtype=np.float64)
