"""A look at the first targets: structures that are too fine for the default targets and loss get a hint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samri.errors import SamriError
from samri_training.slices import SliceSource
from samri_training.store import EmbeddedSlice
from samri_training.train._samples import Frame, labels_of
from samri_training.train._settings import Settings
from samri_training.train._targets import low_res_target

_SLICES = 16
_MANY = 8
_SMALL = 64
"""Pixels of the decoder's logits, of 256 x 256 in an ordinary SAM: a square of 8."""


def fine_structure_hint(
    source: SliceSource[EmbeddedSlice], samples: Sequence[int], frame: Frame, settings: Settings
) -> str | None:
    """A line for who trains on many tiny structures per slice with targets that lose their outlines.

    Looks at some slices, spread evenly. Measured on many tiny instances per slice: the defaults took the Dice of
    held-out slices from 0.921 to 0.846, and `--targets coverage --loss balanced` to 0.933.
    """
    if (settings.targets, settings.loss) == ("coverage", "balanced"):
        return None
    numbers, areas = [], []
    for index in np.unique(np.linspace(0, len(samples) - 1, min(_SLICES, len(samples))).astype(int)):
        try:
            mask = source[samples[index]].mask
        except SamriError:
            return None  # The epoch comes to this slice, and stops all processes.
        found = [area for label in labels_of(mask) for area in _part_areas(mask == label, frame)]
        numbers.append(len(found))
        areas += found
    if not areas or np.median(numbers) < _MANY or np.median(areas) >= _SMALL:
        return None
    return (
        f"hint: a slice has {np.median(numbers):.0f} connected parts of {np.median(areas):.0f} pixels of the "
        f"decoder's {frame.low_res} x {frame.low_res} (medians): for many tiny structures, "
        "--targets coverage --loss balanced keeps their outlines"
    )


def _part_areas(mask: npt.NDArray[np.bool_], frame: Frame) -> list[float]:
    """Areas of the connected parts of a mask, in pixels of the decoder's logits."""
    from scipy.ndimage import label

    parts, count = label(mask)
    if not count:
        return []
    covered = float(low_res_target(mask, frame.profile, frame.image_size, frame.low_res, "coverage").sum())
    return [float(pixels) * covered / int(mask.sum()) for pixels in np.bincount(parts.ravel())[1:]]
