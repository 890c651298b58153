"""Test slices: from a folder of slices and masks, or from embedding stores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from samri.errors import InputError
from samri_training.evaluate._models import Model
from samri_training.slices import SPLITS, LabelledSlice, SliceSource, Split, find_slices
from samri_training.store import EmbeddedSlice, Embeddings, combine, require_encoder

TEST_SPLIT: Split = "testing"


class TestSource(SliceSource[LabelledSlice | EmbeddedSlice], Protocol):
    """Test slices, to be encoded or embedded already.

    Attributes:
        datasets: Dataset of each slice: the folders above it without the split, or empty where there is one
            dataset. Label 1 may mean different structures in different datasets.
    """

    datasets: Sequence[str]

    def accept(self, model: Model) -> None:
        """Make sure that a model can be evaluated on these slices.

        Raises:
            InputError: They are embedded already, by another encoder.
        """
        ...

    @property
    def notes(self) -> list[str]:
        """Plain lines that a reader of the results should see."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain JSON values, for provenance."""
        ...


class SliceFolder:
    """The slices of a folder: those of one split, if it is a dataset with splits.

    Args:
        folder: A dataset, several datasets, one of their splits, or any folder of `*_img_*` with `*_seg_*`.
        split: Which slices to take. None takes `testing` of a dataset, and all slices of a folder that has no splits
            or is itself one.

    Raises:
        InputError: No slices there, or an image without its mask.
    """

    def __init__(self, folder: Path, split: Split | None = None) -> None:
        pairs = find_slices(folder)
        there = {pair.split for pair in pairs}
        if split is None and there != {None} and folder.resolve().name not in SPLITS:
            split = TEST_SPLIT
        self._folder = folder
        self._split = split
        self._pairs = [pair for pair in pairs if split is None or pair.split == split]
        if not self._pairs:
            splits = ", ".join(sorted(name for name in there if name)) or "no split at all"
            raise InputError(f"{folder} holds no slices for {split}, only {splits}: choose with --split")
        self.datasets: Sequence[str] = [_dataset(pair.name.split("/")[:-1]) for pair in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> LabelledSlice:
        return self._pairs[index].read()

    def accept(self, model: Model) -> None:
        """Any model: it encodes the slices itself."""

    @property
    def notes(self) -> list[str]:
        """Where distances can't be in mm."""
        pictures = sum(not pair.image.name.lower().endswith((".nii", ".nii.gz")) for pair in self._pairs)
        return [f"{pictures} slices are pictures without a spacing: their distances are in pixels"] if pictures else []

    def describe(self) -> dict[str, Any]:
        """Plain JSON values, for provenance."""
        return {"kind": "slices", "folder": self._folder.resolve().name, "split": self._split, "slices": len(self)}


class EmbeddedSlices:
    """Slices that were embedded before: nothing is encoded, so all models must share the encoder.

    Args:
        sources: Stores and published caches, of one dataset or of several.

    Raises:
        InputError: None, or not of one encoder.
    """

    def __init__(self, *sources: Embeddings) -> None:
        self._embeddings = combine(sources)
        above = Path(os.path.commonpath([source.path.absolute() for source in sources]))
        self.datasets: Sequence[str] = [
            _dataset([*source.path.absolute().relative_to(above).parts, *name.split("/")[:-1]])
            for source in sources
            for name, _ in source.names()
        ]

    def __len__(self) -> int:
        return len(self._embeddings)

    def __getitem__(self, index: int) -> EmbeddedSlice:
        return self._embeddings[index]

    def accept(self, model: Model) -> None:
        """Refuse a model with another encoder or preprocessing.

        Raises:
            InputError: Names the store, and what its embeddings were made with.
        """
        facts = model.facts(self._embeddings.info.encoder_precision)
        require_encoder(self._embeddings, facts, f"the model {model.name}")

    @property
    def notes(self) -> list[str]:
        """Where distances can't be in mm."""
        known = self._embeddings.info.spacing_known
        return [] if known else ["the store doesn't know the slices' spacing: distances are in pixels"]

    def describe(self) -> dict[str, Any]:
        """Plain JSON values, for provenance."""
        info = self._embeddings.info
        return {
            "kind": "store",
            "folder": self._embeddings.path.resolve().name,
            "slices": len(self),
            "store": info.to_json(),
        }


def _dataset(folders: Sequence[str]) -> str:
    """The folders of a slice as the name of its dataset."""
    return "/".join(folder for folder in folders if folder not in SPLITS)
