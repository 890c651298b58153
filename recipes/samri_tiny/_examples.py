"""What a training step learns from: drawn slices, targets in them, and the prompts that a person might give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from samri.preprocessing import profile
from samri.prompts import ABSENT, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, NO_BOX
from samri_tiny.synthesis import LabelMap, SyntheticSlice, Target, draw_shapes, draw_slice, pick_targets
from samri_training.prompting import sample_box

SHAPES = 0.25  # Share of slices that aren't anatomy.
ODD_FRAMES = 0.25  # Share of slices that aren't square, so that the frame is padded.
BOX, POINT = 0.6, 0.2  # Shares of prompts with a box alone and a point alone; the rest has both.
JITTER = 0.08  # Of a box's extent: how far each side may be off.
JITTER_MIN, JITTER_MAX = 2.0, 8.0  # Pixels: a hand is no steadier around small things, nor worse around large ones.
JITTER_MOST = 0.25  # Of the extent, all the same.
SMALLEST = 24  # Pixels of a target.


@dataclass(frozen=True)
class Example:
    """A slice and K prompts for it; prompt k wants mask k.

    Attributes:
        image: (S, S) uint8, zero below and right of the slice.
        shape: (H, W) of the slice in it.
        masks: (K, S, S) uint8, 0 or 1.
        coords: (K, 3, 2) float32, (x, y) in pixels: a point, then a box's corners.
        labels: (K, 3) float32, as SAM labels points; -2 where there is none.
    """

    image: npt.NDArray[np.uint8]
    shape: tuple[int, int]
    masks: npt.NDArray[np.uint8]
    coords: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]


class DrawnExamples(Dataset[Example]):
    """Example number i of a seed, drawn when it is asked for: the same one every time."""

    def __init__(
        self, label_maps: Sequence[LabelMap], seed: tuple[int, ...], side: int, prompts: int, count: int
    ) -> None:
        self._label_maps = label_maps
        self._seed, self._side, self._prompts, self._count = seed, side, prompts, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([*self._seed, self._side, index])
        drawn, targets = self._drawn(rng)
        masks = np.zeros((self._prompts, self._side, self._side), np.uint8)
        image = np.zeros((self._side, self._side), np.uint8)
        height, width = drawn.image.shape
        image[:height, :width] = drawn.image
        prompts = []
        for number in range(self._prompts):
            mask = targets[number % len(targets)].mask
            masks[number, :height, :width] = mask
            prompts.append(_prompt(mask, rng))
        coords, labels = zip(*prompts, strict=True)
        return Example(image, (height, width), masks, np.stack(coords), np.stack(labels))

    def _drawn(self, rng: np.random.Generator) -> tuple[SyntheticSlice, list[Target]]:
        while True:
            shape = self._shape(rng)
            if not self._label_maps or rng.random() < SHAPES:
                drawn = draw_shapes(rng, shape)
            else:
                drawn = draw_slice(self._label_maps[int(rng.integers(len(self._label_maps)))], rng, shape)
            targets = pick_targets(drawn, rng, self._prompts, SMALLEST)
            if targets:
                return drawn, targets

    def _shape(self, rng: np.random.Generator) -> tuple[int, int]:
        if rng.random() >= ODD_FRAMES:
            return self._side, self._side
        shorter = int(self._side * rng.uniform(0.55, 1.0))
        return (self._side, shorter) if rng.random() < 0.5 else (shorter, self._side)


@dataclass(frozen=True)
class ExampleBatch:
    """Examples together, in small types for their way from a worker to a device: B prompts, an image's together.

    Attributes:
        slices: (N, S, S) uint8.
        shapes: (N, 2) int64, (height, width) of what isn't padding.
        quarters: (B, 1, S / 2, S / 2) uint8, how many of the 2 x 2 pixels belong to the mask.
        coords: (B, 3, 2) float32.
        labels: (B, 3) float32.
    """

    slices: Tensor
    shapes: Tensor
    quarters: Tensor
    coords: Tensor
    labels: Tensor

    def tensors(self) -> list[Tensor]:
        """In the order of the attributes."""
        return [getattr(self, field.name) for field in fields(self)]

    def pin_memory(self) -> ExampleBatch:
        """The same where a GPU can fetch it by itself; the loader calls this."""
        return ExampleBatch(*(tensor.pin_memory() for tensor in self.tensors()))

    def images(self) -> Tensor:
        """(N, 3, S, S) float32, preprocessed as SAM does: normalised, then padded with zeros."""
        samri = profile("samri")
        gray = self.slices.float()
        normalised = torch.stack([(gray - mean) / std for mean, std in zip(samri.mean, samri.std, strict=True)], dim=1)
        place = torch.arange(self.slices.shape[1], device=self.slices.device)
        rows, columns = (place < sides[:, None] for sides in self.shapes.unbind(1))
        return normalised * (rows[:, :, None] & columns[:, None, :])[:, None]

    def targets(self) -> Tensor:
        """(B, 1, S / 2, S / 2) float32, the share of each low-resolution pixel that belongs to the mask."""
        return self.quarters.float() / 4


def collate(examples: Sequence[Example]) -> ExampleBatch:
    """Examples as tensors."""
    quarters = np.concatenate([_quarters(example.masks) for example in examples])
    return ExampleBatch(
        torch.from_numpy(np.stack([example.image for example in examples])),
        torch.tensor([example.shape for example in examples]),
        torch.from_numpy(quarters[:, None]),
        torch.from_numpy(np.concatenate([example.coords for example in examples])),
        torch.from_numpy(np.concatenate([example.labels for example in examples])),
    )


def _quarters(masks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(K, S / 2, S / 2) uint8, how many of the 2 x 2 pixels are 1, of (K, S, S)."""
    rows = masks[:, 0::2] + masks[:, 1::2]
    return np.asarray(rows[:, :, 0::2] + rows[:, :, 1::2], np.uint8)


def one_thread(worker: int) -> None:
    """A drawing worker leaves the other cores to the training."""
    del worker
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _prompt(
    mask: npt.NDArray[np.bool_], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    coords = np.zeros((3, 2), np.float32)
    labels = np.full(3, ABSENT, np.float32)
    kind = rng.random()
    if kind >= BOX:
        inside = np.flatnonzero(mask)
        row, column = divmod(int(rng.choice(inside)), mask.shape[1])
        coords[0], labels[0] = (column, row), FOREGROUND
    if BOX <= kind < BOX + POINT:
        labels[1] = NO_BOX
        return coords, labels
    box = sample_box(mask, rng)
    extent = box[2:] - box[:2]
    reach = np.minimum(np.clip(JITTER * extent, JITTER_MIN, JITTER_MAX), JITTER_MOST * extent)
    # Half of the boxes are nearly tight: that is what a careful person and an evaluation draw.
    moved = box + rng.uniform(-1, 1, 4) * np.concatenate([reach, reach]) * (1.0 if rng.random() < 0.5 else 0.3)
    height, width = mask.shape
    coords[1:] = np.minimum(np.maximum(moved, 0), (width, height, width, height)).reshape(2, 2)
    labels[1:] = BOX_TOP_LEFT, BOX_BOTTOM_RIGHT
    return coords, labels
