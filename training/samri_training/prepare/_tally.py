"""How much of a structure there is, and how large it is in its slices."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from samri_training.sizes import SIZES, size_of


@dataclass(frozen=True)
class LabelTally:
    """One label's count over slices.

    Attributes:
        slices: Slices that it is marked in.
        pixels: Pixels in those.
        small: Slices where it covers less than 0.5 % of the image.
        medium: From 0.5 to 3.5 %.
        large: More than 3.5 %.
        dropped: Slices where it had too few pixels to be kept.
    """

    slices: int = 0
    pixels: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, pixels: int, area: int, min_pixels: int) -> LabelTally:
        """The tally of one slice: `pixels` of the label in an image of `area` pixels."""
        if pixels < min_pixels:
            return cls(dropped=1)
        size = size_of(pixels, (area,))
        return cls(1, pixels, *(int(size == each) for each in SIZES))

    def __add__(self, other: LabelTally) -> LabelTally:
        return LabelTally(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))
