"""Small real embedding stores: drawn slices, embedded by a seeded SAM's own encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from segment_anything.modeling import Sam

from samri.manifest import embedding_id
from samri.model import ImageEncoder, encoder_sha256, infer_architecture
from samri.preprocessing import ProfileName, preprocess, profile
from samri_training.store import (
    EmbeddedSlice,
    EmbeddingStore,
    EncoderFacts,
    ShardWriter,
    StoredDtype,
    StoreInfo,
    StorePlan,
)


@dataclass(frozen=True)
class DrawnSlice:
    """A slice before it is embedded."""

    case: str
    image: npt.NDArray[np.float32]
    """(H, W)."""
    mask: npt.NDArray[np.uint8]
    """(H, W) label map."""


def drawn_slices(count: int, seed: int = 0, cases: int = 4) -> list[DrawnSlice]:
    """Slices of several shapes with two bright, overlapping-free ellipses each, labelled 1 and 2, on a noisy ground.

    Each seed has cases of its own.
    """
    case = f"seed{seed}_case" if seed else "case"
    shapes = [(96, 96), (120, 80), (64, 100), (150, 150)]
    return [_drawn(shapes[at % 4], f"{case}{at % cases}", np.random.default_rng([seed, at])) for at in range(count)]


def write_store(
    folder: Path,
    sam: Sam,
    slices: Sequence[DrawnSlice],
    profile_name: ProfileName = "samri",
    dtype: StoredDtype = "fp16",
) -> Path:
    """Embed slices into a store in `folder`."""
    shape = infer_architecture(sam.state_dict(), "sam")
    facts = EncoderFacts(
        embedding_id=embedding_id(encoder_sha256(sam), profile(profile_name), shape.image_size, "fp32"),
        profile=profile_name,
        image_size=shape.image_size,
        embedding_shape=shape.embedding_shape,
        backbone=shape.backbone,
        precision="fp32",
        checkpoint="small.pth",
        checkpoint_sha256="0" * 64,
    )
    pixels = [preprocess(each.image, profile(profile_name), shape.image_size) for each in slices]
    with torch.inference_mode():
        features = ImageEncoder(sam.image_encoder)(torch.from_numpy(np.concatenate(pixels))).numpy()
    embedded = [
        EmbeddedSlice(f"{each.case}_img_{at}", each.case, features[at], each.mask, (1.0, 1.0))
        for at, each in enumerate(slices)
    ]
    info = StoreInfo.of(facts, dtype, "slices")
    plan = StorePlan.of(info, [(each.name, each.case) for each in embedded])
    plan.begin(folder)
    for shard in plan.shards:
        with ShardWriter(folder, info, shard, batch_size=4) as writer:
            writer.append(embedded[shard.start : shard.start + shard.count])
            writer.seal({})
    EmbeddingStore.open(folder)
    return folder


def _drawn(shape: tuple[int, int], case: str, rng: np.random.Generator) -> DrawnSlice:
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    mask = np.zeros(shape, dtype=np.uint8)
    image = rng.normal(30, 6, shape)
    for label, (left, brightness) in enumerate([(0.28, 90.0), (0.72, 150.0)], start=1):
        center = rng.uniform(0.35, 0.65) * height, (left + rng.uniform(-0.05, 0.05)) * width
        radii = rng.uniform(0.12, 0.25) * height, rng.uniform(0.1, 0.18) * width
        inside = ((rows - center[0]) / radii[0]) ** 2 + ((columns - center[1]) / radii[1]) ** 2 <= 1
        mask[inside] = label
        image[inside] += brightness
    return DrawnSlice(case, image.astype(np.float32), mask)
