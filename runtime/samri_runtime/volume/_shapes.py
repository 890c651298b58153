"""What a mask says of its neighbor: where it lies, how deep, and which of its pieces go on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def bounding_box(mask: Mask) -> npt.NDArray[np.float64]:
    """The tight box of a mask with at least one pixel: (4,) XYXY, the right and lower edges just outside of it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def deepest_point(mask: Mask) -> npt.NDArray[np.float64]:
    """(x, y) of a pixel farthest from the edge of a mask with at least one pixel.

    The mask is peeled, in turns by the four and by the eight neighbors of a pixel (distance in octagons, within 8% of
    Euclid's); of the last pixels left, the one nearest to their center is taken.
    """
    box = bounding_box(mask).astype(int)
    left = np.pad(mask[box[1] : box[3], box[0] : box[2]], 1)
    turn = 0
    while (peeled := _peel(left, diagonal=bool(turn % 2))).any():
        left, turn = peeled, turn + 1
    rows, columns = np.nonzero(left)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return np.array([columns[nearest] + box[0] - 1, rows[nearest] + box[1] - 1], dtype=np.float64)


def touching(mask: Mask, neighbor: Mask) -> Mask:
    """The pieces of `mask` (4-connected) that overlap `neighbor`; all of it where none does."""
    reached = mask & neighbor
    if not reached.any():
        return mask
    box = bounding_box(mask).astype(int)
    window = (slice(box[1], box[3]), slice(box[0], box[2]))
    allowed, grown = np.pad(mask[window], 1), np.pad(reached[window], 1)
    count = 0
    while (size := int(np.count_nonzero(grown))) != count:
        count = size
        grown = _spread(grown, allowed)
    kept = np.zeros_like(mask)
    kept[window] = grown[1:-1, 1:-1]
    return kept


def overlap(one: Mask, other: Mask) -> float:
    """Dice of two masks; 1 of two empty ones."""
    both = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / both if both else 1.0


def _peel(padded: Mask, *, diagonal: bool) -> Mask:
    inner = np.zeros_like(padded)
    core = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    if diagonal:
        core = core & padded[:-2, :-2] & padded[:-2, 2:] & padded[2:, :-2] & padded[2:, 2:]
    inner[1:-1, 1:-1] = core
    return inner


def _spread(grown: Mask, allowed: Mask) -> Mask:
    """Fill from `grown` along rows, then along columns, wherever `allowed` lets it."""
    for turned in (False, True):
        seeds, free = (grown.T, allowed.T) if turned else (grown, allowed)
        # Runs of allowed pixels in each row are numbered; a run that holds a seed is filled whole.
        starts = np.zeros_like(free)
        starts[:, 1:] = free[:, 1:] & ~free[:, :-1]
        runs = np.cumsum(starts, axis=None).reshape(free.shape)
        filled = np.zeros(int(runs.max()) + 1, dtype=np.bool_)
        filled[runs[seeds]] = True
        result = filled[runs] & free
        grown = np.ascontiguousarray(result.T) if turned else result
    return grown
