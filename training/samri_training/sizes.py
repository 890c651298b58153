"""How large a structure is in its slice, in the bins of the SAMRI paper."""

from __future__ import annotations

from typing import Literal, get_args

Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)


def size_of(pixels: int, shape: tuple[int, ...]) -> Size:
    """The bin of a structure of that many pixels in an (H, W) image: under 0.5 %, to 3.5 %, above."""
    area = 1
    for length in shape:
        area *= length
    # In whole numbers, since the bounds are often met exactly.
    if 1000 * pixels < 5 * area:
        return "small"
    return "large" if 1000 * pixels > 35 * area else "medium"
