"""Stage 2: SAMRI's own procedure on the small model: its encoder frozen, embeddings cached, the decoder fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samri_tiny.architecture import IMAGE_SIZE
from samri_tiny.synthesis import LabelMap, draw_shapes, draw_slice, visible_parts
from samri_training.embed import TorchEncoder, checkpoint_facts, embed, find_sources
from samri_training.prepare import prepare_arrays
from samri_training.train import Settings

SMALLEST = 100
"""Pixels of a structure that is asked about."""


def finetune(
    label_maps: Sequence[LabelMap], checkpoint: Path, folder: Path, *, slices: int, epochs: int, device: str = "auto"
) -> Path:
    """Draw slices, embed them with the checkpoint's encoder, and fine-tune its decoder on them.

    The last fifth of the subjects validates. What is there from an earlier run is used again.

    Args:
        label_maps: Subjects to draw from; none means shapes alone.
        checkpoint: Checkpoint of stage 1.
        folder: Gets `slices/`, `store/` and `run/`.
        slices: To draw.
        epochs: Passes over them.
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Returns:
        The checkpoint with the fine-tuned decoder.
    """
    from samri_training.train import train

    dataset, store, run = (folder / name for name in ("slices", "store", "run"))
    if not dataset.exists():
        _draw(label_maps, dataset, slices)
    embed(
        find_sources(dataset), store, checkpoint_facts(checkpoint, "samri"), TorchEncoder(checkpoint, "samri", device)
    )
    settings = {
        "embedding_dir": str(store),
        "checkpoint": str(checkpoint),
        "save_dir": str(run),
        "device": device,
        "epochs": epochs,
        "lr": 1e-4,
        "scheduler": "cosine",
        "warmup_steps": 100,
        "prompts": "box",
        "jitter": False,
        "targets": "coverage",  # Logits are half as fine as these slices: outlines lie between their pixels.
        "loss": "balanced",
        "ema": 0.99,
        "train_scores": True,
        "val_every": max(epochs // 5, 1),
    }
    outcome = train(Settings.of(settings, "the tiny recipe"))
    return outcome.folder / "best.pth"


def _draw(label_maps: Sequence[LabelMap], dataset: Path, slices: int) -> None:
    kept = max(len(label_maps) // 5, 1)
    groups = {"training": label_maps[:-kept] or label_maps, "validation": label_maps[-kept:]}
    prepare_arrays(
        dataset,
        {
            "training": _cases(groups["training"], slices, 0),
            "validation": _cases(groups["validation"], max(slices // 10, 4), 1),
        },
    )


def _cases(
    label_maps: Sequence[LabelMap], count: int, seed: int
) -> dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Slice and label map by name, with a label of its own for each connected structure that can be seen."""
    cases: dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = {}
    shape = (IMAGE_SIZE, IMAGE_SIZE)
    number = 0
    while len(cases) < count:
        rng = np.random.default_rng([2, seed, number])
        source = label_maps[number % len(label_maps)] if label_maps else None
        drawn = draw_slice(source, rng, shape) if source else draw_shapes(rng, shape)
        labels = np.zeros(shape, np.uint8)
        for label, part in enumerate(visible_parts(drawn, SMALLEST)[:255], start=1):
            labels[part.mask] = label
        if labels.any():
            cases[f"{source.name if source else 'shapes'}_{seed}_{number:05d}"] = drawn.image, labels
        number += 1
    return cases
