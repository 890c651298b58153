"""Sources of samri-embed: slices to encode, or published caches to copy into a store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.hashing import stream_sha256
from samri.opening import open_regular
from samri.preprocessing import preprocess, profile
from samri_training.published import KIND, CachedSlice, find_cached, spacing_known
from samri_training.slices import KNOWN_NAMES, SPLITS, LabelledSlice, SlicePair, find_slices, match_slices, split_of
from samri_training.store import EmbeddedSlice, EncoderFacts

_T = TypeVar("_T", SlicePair, CachedSlice)


Loaded = tuple[LabelledSlice, npt.NDArray[np.float32]] | tuple[EmbeddedSlice, None]
"""A slice and the encoder's input, (1, 3, S, S) float32; or the embedding that a cache holds, and nothing to encode."""


@dataclass(frozen=True, eq=False)
class SliceSet:
    """The slices of one store.

    Attributes:
        split: `training`, `validation` or `testing`; empty where the data has no such folders.
        kind: `slices`, or `published cache`.
        slices: (name, case) of each, in the order that the store will have.
        spacing_known: Whether pixel sizes are real millimetres.
        load: Reads slice i for an encoder with those facts; may be called from several threads.
        fingerprint: SHA-256 of all that slice i is read from; may be called from several threads.
    """

    split: str
    kind: str
    slices: Sequence[tuple[str, str]]
    spacing_known: bool
    load: Callable[[int, EncoderFacts], Loaded]
    fingerprint: Callable[[int], str]

    @property
    def is_encoded(self) -> bool:
        """Whether `load` gives embeddings already."""
        return self.kind == KIND


def find_sources(folder: str | Path) -> list[SliceSet]:
    """The slices or cached embeddings below a folder, one source for each of the splits among its subfolders.

    Raises:
        InputError: There is nothing to embed, an image or mask lacks its partner, or some slices lie in a split's
            folder and others don't.
    """
    folder = Path(folder)
    pairs, images, masks = match_slices(folder)
    if pairs or images or not (masks or _has_cached(folder)):
        return [_slices(split, group) for split, group in _by_split(folder, find_slices(folder))]
    return [_cached(split, group) for split, group in _by_split(folder, find_cached(folder))]


def _slices(split: str, pairs: Sequence[SlicePair]) -> SliceSet:
    def load(index: int, facts: EncoderFacts) -> Loaded:
        pair = pairs[index]
        read = pair.read()
        chosen = profile(facts.profile)
        # The other profiles look at the slice alone, whatever is known of its volume.
        volume_range = read.intensity_range if chosen.intensity == "percentile" else None
        try:
            image = preprocess(read.image, chosen, facts.image_size, volume_range)
        except InputError as error:
            raise InputError(f"{pair.image}: {error}") from error
        return read, image

    def fingerprint(index: int) -> str:
        pair = pairs[index]
        return _fingerprint((pair.image, pair.mask), pair.intensity_range)

    return SliceSet(split, "slices", [(pair.name, pair.subject) for pair in pairs], True, load, fingerprint)


def _fingerprint(files: Sequence[Path], beside: object = None) -> str:
    digest = hashlib.sha256(repr(beside).encode())
    for path in files:
        with open_regular(path) as file:
            digest.update(stream_sha256(cast(BufferedReader, file)).encode())
    return digest.hexdigest()


def _cached(split: str, slices: Sequence[CachedSlice]) -> SliceSet:
    def load(index: int, facts: EncoderFacts) -> Loaded:
        return slices[index].read(facts.embedding_shape), None

    def fingerprint(index: int) -> str:
        cached = slices[index]
        return _fingerprint((cached.file,) if cached.mask is None else (cached.file, cached.mask))

    named = [(item.name, item.case) for item in slices]
    return SliceSet(split, KIND, named, spacing_known(slices), load, fingerprint)


def _has_cached(folder: Path) -> bool:
    return any(next(folder.rglob(f"*{suffix}"), None) is not None for suffix in (".npz", ".npy", ".pt", ".pth"))


def _by_split(folder: Path, items: Sequence[_T]) -> list[tuple[str, list[_T]]]:
    groups: dict[str, list[_T]] = {}
    for item in items:
        groups.setdefault(split_of(item.name) or "", []).append(item)
    if "" in groups and len(groups) > 1:
        raise InputError(
            f"{folder}: {groups[''][0].name} lies in no folder for {KNOWN_NAMES}, and other slices do: "
            "name one of these folders, or move the slice"
        )
    return [(split, groups[split]) for split in ("", *SPLITS) if split in groups]
