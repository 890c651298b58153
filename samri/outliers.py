"""A hot voxel or burnt-in text that takes the range of intensities away from the rest of a slice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samri.preprocessing import Profile, checked_pixels

_FEW = 0.001  # Share of the pixels.


def outlier_note(image: npt.ArrayLike, profile: Profile) -> str | None:
    """A note if a few pixels take over half of the range that the profile maps to 256 levels, else None.

    Args:
        image: (H, W) or (H, W, 3), which `preprocess` would be given without `intensity_range`.
        profile: The bundle's profile. Only those that map a slice's own minimum and maximum are concerned.

    Raises:
        InputError: Not such an image.
    """
    pixels = checked_pixels(image)
    few = int(pixels.size * _FEW)
    unchanged = profile.intensity == "minmax-unless-uint8" and pixels.dtype == np.uint8
    if few == 0 or unchanged or profile.intensity == "percentile":
        return None
    values = pixels.astype(np.float64).ravel() / 4  # So that no difference is infinite.
    values.partition((0, few, values.size - 1 - few, values.size - 1))
    lowest, low, high, highest = (float(values[place]) for place in (0, few, -1 - few, -1))
    part, kind = max((highest - high, "bright"), (low - lowest, "dark"))
    if part <= (highest - lowest) / 2:
        return None
    rest = (lowest, high) if kind == "bright" else (low, highest)
    return (
        f"outliers: a few {kind} pixels (under {_FEW:.1%}) take {part / (highest - lowest):.0%} of the slice's range, "
        f"{4 * lowest:g} to {4 * highest:g}; the rest lies in {4 * rest[0]:g} to {4 * rest[1]:g}, where the model sees "
        "few levels of gray: if they are no anatomy, clip them in the scan"
    )
