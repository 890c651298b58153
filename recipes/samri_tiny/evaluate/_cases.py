"""What is asked: slices with their true structures, and of each structure the prompts that a person might give."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samri_training.evaluate import prompt_generator
from samri_training.prompting import sample_box

MIN_AREA = 100.0  # Structures of more pixels than this are asked for, in a slice whose longest side has FRAME.
JITTER = 2.0  # Each side of the box moves by up to so many of those pixels,
JITTER_SHARE = 0.25  # and by no more than this part of the box's extent, so that thin structures keep a box.

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TestSlice:
    """One slice with its ground truth.

    Attributes:
        name: Unique in its set.
        subject: Whom it shows.
        image: (H, W), as the predictor gets it.
        structures: Name to (H, W) bool; they may overlap.
    """

    __test__ = False  # Not one of pytest's.

    name: str
    subject: str
    image: npt.NDArray[Any]
    structures: Mapping[str, Mask]


@dataclass(frozen=True, eq=False)
class PromptedStructure:
    """One structure of one slice, or one connected part of it, and its prompts in (x, y) pixels of the slice.

    Attributes:
        slice: The slice's name.
        subject: Whom it shows.
        structure: What it is called.
        part: 1 for the largest connected part (of pixels with a common side), 2 for the next; 0 for all parts together.
        parts: How many parts the structure has in this slice, of any size.
        pixels: Area of the truth.
        area: Those, in a slice whose longest side has 256 pixels.
        cnr: Contrast-to-noise ratio to its surroundings.
        truth: (H, W) bool.
        tight_box: (4,) XYXY at pixel edges.
        box: The same with its sides moved.
        point: (2,) x, y: the pixel furthest from the truth's outside.
    """

    slice: str
    subject: str
    structure: str
    part: int
    parts: int
    pixels: int
    area: float
    cnr: float
    truth: Mask
    tight_box: npt.NDArray[np.float64]
    box: npt.NDArray[np.float64]
    point: npt.NDArray[np.float64]

    @property
    def connected(self) -> bool:
        """A single piece."""
        return self.part > 0

    @property
    def whole(self) -> bool:
        """All that the structure is in its slice."""
        return self.part == 0 or self.parts == 1

    @property
    def visible(self) -> bool:
        """Its contrast to its surroundings is at least their noise."""
        return self.cnr >= VISIBLE


def cases_of(test: TestSlice, seed: int) -> list[PromptedStructure]:
    """Every connected part above 100 pixels; and where a structure has several parts, all of them as one case more."""
    from scipy.ndimage import label

    cases = []
    for structure, truth in test.structures.items():
        numbered, parts = label(truth)
        sizes = np.bincount(numbered.ravel())[1:]
        if parts > 1 and _area(int(sizes.sum()), truth.shape) > MIN_AREA:
            cases.append(_case(test, structure, 0, parts, truth, seed))
        for part, index in enumerate(np.argsort(-sizes, kind="stable").tolist(), start=1):
            if _area(int(sizes[index]), truth.shape) > MIN_AREA:
                cases.append(_case(test, structure, part, parts, numbered == index + 1, seed))
    return cases


def digest(cases: Sequence[PromptedStructure]) -> str:
    """What the cases of a slice are, in 12 hexadecimal digits: names, parts, sizes, tight boxes and visibility."""
    lines = [
        f"{case.structure}\t{case.part}/{case.parts}\t{case.pixels}\t{case.tight_box.astype(int).tolist()}\t"
        f"{int(case.visible)}\n"
        for case in cases
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def jittered(box: npt.NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Each side moved by U[-2, 2] pixels of a slice whose longest side has 256, clipped to the image.

    No side moves by more than a quarter of the box's extent.

    Args:
        box: (4,) XYXY.
        shape: (H, W).
        rng: Four numbers are drawn.
    """
    height, width = shape
    extent = np.tile(box[2:] - box[:2], 2)
    most = np.minimum(JITTER * max(shape) / FRAME, JITTER_SHARE * extent)
    return np.clip(box + rng.uniform(-1, 1, 4) * most, 0, (width, height, width, height))


def middle(mask: Mask) -> npt.NDArray[np.float64]:
    """The pixel of a mask furthest from all that is outside it, beyond the image too, as (2,) x, y."""
    from scipy.ndimage import distance_transform_edt

    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    crop = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    depth = distance_transform_edt(crop)
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return np.array([columns[0] + column - 1, rows[0] + row - 1], dtype=np.float64)


def _area(pixels: int, shape: tuple[int, ...]) -> float:
    return pixels * (FRAME / max(shape)) ** 2


def _case(test: TestSlice, structure: str, part: int, parts: int, mask: Mask, seed: int) -> PromptedStructure:
    rng = prompt_generator(seed, f"{test.subject}, {test.name}, {structure}", part)
    tight, pixels = sample_box(mask, rng), int(np.count_nonzero(mask))
    return PromptedStructure(
        slice=test.name,
        subject=test.subject,
        structure=structure,
        part=part,
        parts=parts,
        pixels=pixels,
        area=_area(pixels, mask.shape),
        cnr=contrast_to_noise(test.image, mask),
        truth=mask,
        tight_box=tight,
        box=jittered(tight, (mask.shape[0], mask.shape[1]), rng),
        point=middle(mask),
    )


RING = 3.0  # Width of the surroundings, in pixels of a slice whose longest side has FRAME.
FRAME = 256
VISIBLE = 1.0


def contrast_to_noise(image: npt.NDArray[Any], structure: npt.NDArray[np.bool_]) -> float:
    """CNR = |mean(inside) - mean(ring)| / sqrt((var(inside) + var(ring)) / 2).

    The ring holds the pixels outside the structure that are at most 3 pixels (Euclidean, between pixel centers) from
    one of its own, in a slice whose longest side has 256. Without noise the CNR is infinite, or 0 where the means are
    equal too; without surroundings it is 0. Both variances weigh the same, so that a large structure can't outweigh a
    ring that looks like it along a part of its outline.

    It is defined apart from what training takes for visible: another training must not change the test.

    Args:
        image: (H, W).
        structure: (H, W) bool, not empty.
    """
    from scipy.ndimage import distance_transform_edt

    width = max(RING * max(image.shape) / FRAME, 1.0)
    near = _widened(np.asarray(structure.any(axis=1)), width), _widened(np.asarray(structure.any(axis=0)), width)
    inside, pixels = structure[near], image[near].astype(np.float64)
    ring = ~inside & (distance_transform_edt(~inside) <= width)
    within, around = pixels[inside], pixels[ring]
    if not around.size:
        return 0.0
    contrast = abs(float(within.mean() - around.mean()))
    noise = float(np.sqrt((within.var() + around.var()) / 2))
    if noise == 0:
        return float("inf") if contrast > 0 else 0.0
    return contrast / noise


def _widened(used: npt.NDArray[np.bool_], width: float) -> slice:
    """Where a structure lies along an axis, and its surroundings with it."""
    places = np.flatnonzero(used)
    margin = int(np.ceil(width))
    return slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1)
