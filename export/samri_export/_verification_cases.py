"""The images and prompts on which an exported bundle is compared with the model that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.geometry import SliceView, axis_view, whole_view
from samri.io import MissingFrameError, Scan, read_scan
from samri.preprocessing import Profile, percentile_range
from samri.prompts import Prompt

_SMALLEST_SIDE = 8


@dataclass(frozen=True)
class VerificationSlice:
    """A slice to verify on.

    Attributes:
        name: For the report.
        pixels: (H, W), or (H, W, 3).
        intensity_range: Given by the volume that the slice is from, for the medsam profile; None for a lone slice.
    """

    name: str
    pixels: npt.NDArray[Any]
    intensity_range: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.pixels.shape[0], self.pixels.shape[1])


@dataclass(frozen=True)
class PromptCase:
    """One call of the decoder: a batch of prompts, in pixels of the picture.

    Attributes:
        name: For the report.
        prompts: The batch.
        refines: Whether each prompt comes with the logits of an earlier answer.
    """

    name: str
    prompts: tuple[Prompt, ...]
    refines: bool = False


def built_in_slices(image_size: int) -> tuple[VerificationSlice, ...]:
    """A portrait and a landscape slice and one larger than the model's input, of three dtypes, seeded."""
    portrait = _phantom(int(0.9 * image_size), int(0.6 * image_size), seed=1)
    landscape = _phantom(int(0.55 * image_size), int(0.8 * image_size), seed=2)
    large = _phantom(int(1.2 * image_size), int(1.4 * image_size), seed=3)
    return (
        VerificationSlice("portrait", (4000 * portrait).astype(np.uint16)),
        VerificationSlice("landscape", (255 * landscape).astype(np.uint8)),
        VerificationSlice("larger than S", (large - 0.2).astype(np.float32)),
    )


def user_slices(scans: Sequence[Path], profile: Profile) -> tuple[VerificationSlice, ...]:
    """The user's own images, without their names: the report travels with the bundle, and those may tell whose it is.

    Raises:
        InputError: A scan can't be read.
    """
    return tuple(slice_of_scan(scan, profile, f"own image {number}") for number, scan in enumerate(scans, start=1))


def slice_of_scan(path: Path, profile: Profile, name: str) -> VerificationSlice:
    """The user's own image; of a volume, the middle slice of its last axis, of a 4-D scan the first frame."""
    scan = first_frame(path)
    return slice_of_view(scan, _middle_view(scan.grid), profile, name)


def first_frame(path: Path) -> Scan:
    """The scan in a file, or the first frame of a 4-D one."""
    try:
        return read_scan(path)
    except MissingFrameError:
        return read_scan(path, frame=0)


def slice_of_view(scan: Scan, view: SliceView, profile: Profile, name: str) -> VerificationSlice:
    """One slice of a scan, which has to be large enough to place prompts on."""
    pixels = view.extract(scan.voxels)
    if min(pixels.shape[:2]) < _SMALLEST_SIDE:
        raise InputError(
            f"{scan.path}: its slice of {pixels.shape[1]} x {pixels.shape[0]} pixels is too small to verify on"
        )
    # MedSAM maps intensities by the whole volume, the others by the slice.
    by_volume = profile.intensity == "percentile"
    return VerificationSlice(name, pixels, percentile_range(scan.voxels, profile) if by_volume else None)


def prompt_cases(shape: tuple[int, int]) -> tuple[PromptCase, ...]:
    """Ten prompts in seven batches, spread over an image of (H, W) pixels; none falls on whole pixels."""
    size = np.array([shape[1], shape[0]], dtype=np.float64)

    def at(*fractions: float) -> npt.NDArray[np.float64]:
        return np.array(fractions).reshape(-1, 2) * (size - 1)

    box = Prompt.of(box=at(0.21, 0.18, 0.63, 0.57).ravel())
    other_box = Prompt.of(box=at(0.48, 0.41, 0.93, 0.88).ravel())
    click = Prompt.of(at(0.37, 0.64), [1])
    clicks = Prompt.of(at(0.55, 0.33, 0.71, 0.42, 0.12, 0.83), [1, 1, 0])
    box_and_click = Prompt.of(at(0.52, 0.47), [1], box=at(0.33, 0.29, 0.78, 0.74).ravel())
    return (
        PromptCase("one box", (box,)),
        PromptCase("two boxes", (box, other_box)),
        PromptCase("one point", (click,)),
        PromptCase("three points", (clicks,)),
        PromptCase("box + point", (box_and_click,)),
        PromptCase("batch of unequal lengths", (click, other_box, clicks)),
        PromptCase("refined by a mask", (box_and_click,), refines=True),
    )


def _phantom(height: int, width: int, seed: int) -> npt.NDArray[np.float64]:
    """A head-like picture in [0, 1]: a bright ellipse on black, blobs in it, and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    inside = ((x / 0.8) ** 2 + (y / 0.9) ** 2) < 1
    blobs = np.zeros((height, width))
    for cx, cy, radius, brightness in random.uniform((-0.6, -0.7, 0.08, -1), (0.6, 0.7, 0.35, 1), (9, 4)):
        blobs += brightness * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2)
    noisy = inside * (0.5 + 0.2 * blobs) + 0.03 * random.standard_normal((height, width))
    clipped: npt.NDArray[np.float64] = noisy.clip(0, 1)
    return clipped


def _middle_view(grid: tuple[int, ...]) -> SliceView:
    if len(grid) == 2 or 1 in (grid[0], grid[2]):
        return whole_view(grid)
    return axis_view(grid, axis=2, index=grid[2] // 2)
