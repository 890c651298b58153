"""Which slices are learned from and which are validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samri.errors import InputError
from samri.manifest import embedding_id
from samri.model import Checkpoint, encoder_sha256
from samri.preprocessing import profile
from samri_training.published import open_embeddings
from samri_training.store import Embeddings, EmbeddingStore, EncoderFacts, combine, require_encoder
from samri_training.train._settings import Settings

TRAINING, VALIDATION = "training", "validation"


@dataclass(frozen=True)
class TrainingData:
    """Stores, and the indices of their slices that are used."""

    training: Embeddings
    training_samples: Sequence[int]
    validation: Embeddings | None
    validation_samples: Sequence[int]
    note: str
    """Where the validation slices come from, for the person at the keyboard."""


def open_data(settings: Settings, checkpoint: Checkpoint) -> TrainingData:
    """Open the stores and make sure that the checkpoint's encoder made them.

    Raises:
        InputError: No store, another encoder's, or no cases to hold out.
    """
    folder = settings.embedding_dir
    if folder is None:
        raise InputError("no embeddings to train on: pass --embedding-dir")
    weights = encoder_sha256(checkpoint.sam)

    def opened(paths: Sequence[Path]) -> Embeddings:
        return combine([_opened(path, settings, checkpoint, weights) for path in paths])

    training = opened(_parts(folder, TRAINING) or [folder])
    everything = range(len(training))
    if settings.val_every == 0:
        return TrainingData(training, everything, None, (), "no validation: best.pth is the lowest training loss")
    held = _parts(folder, VALIDATION) if settings.val_embedding_dir is None else [settings.val_embedding_dir]
    if not held:
        return _with_cases_held_out(training, settings)
    validation = opened(held)
    note = f"validating on {', '.join(map(str, held))}"
    return TrainingData(training, everything, validation, range(len(validation)), note)


def _parts(folder: Path, split: str) -> list[Path]:
    """`folder/training`, or that of each dataset in the folder; nothing when the folder is a store itself."""
    if (folder / "store.json").is_file():
        return []
    if (folder / split).is_dir():
        return [folder / split]
    return sorted(path.parent for path in folder.glob(f"*/{split}/store.json"))


def _opened(path: Path, settings: Settings, checkpoint: Checkpoint, weights: str) -> Embeddings:
    """A store, checked against the checkpoint's encoder; or a published cache, which can't say and is believed."""
    shape = checkpoint.architecture
    named = settings.profile or "samri"
    source = open_embeddings(
        path,
        EncoderFacts(
            embedding_id=embedding_id(weights, profile(named), shape.image_size, "fp32"),
            profile=named,
            image_size=shape.image_size,
            embedding_shape=shape.embedding_shape,
            backbone=shape.backbone,
            precision="fp32",
            checkpoint=checkpoint.path.name,
            checkpoint_sha256=checkpoint.sha256,
        ),
    )
    info = source.info
    own = embedding_id(weights, profile(info.profile), shape.image_size, info.encoder_precision)
    require_encoder(source, own, str(checkpoint.path))
    if settings.profile not in (None, info.profile):
        raise InputError(f"{path} was embedded with profile {info.profile}, not {settings.profile}: drop --profile")
    return source


def _with_cases_held_out(source: Embeddings, settings: Settings) -> TrainingData:
    """Whole cases, drawn by the seed: slices of one patient are never on both sides."""
    cases = _cases(source)
    names = sorted(set(cases))
    if len(names) < 2:
        raise InputError(
            f"{source.path} holds one case ({names[0]}), and validation needs others: "
            "pass --val-embedding-dir, or --val-every 0 to train without validation"
        )
    count = min(max(round(settings.val_fraction * len(names)), 1), len(names) - 1)
    held = set(np.random.default_rng(settings.seed).permutation(names)[:count].tolist())
    inside = [index for index, case in enumerate(cases) if case in held]
    outside = [index for index, case in enumerate(cases) if case not in held]
    note = f"validating on {count} of {len(names)} cases of {source.path}, held out by seed {settings.seed}"
    return TrainingData(source, outside, source, inside, note)


def _cases(source: Embeddings) -> list[str]:
    if isinstance(source, EmbeddingStore):
        return [case for _, case in source.names()]
    return [source[index].case for index in range(len(source))]
