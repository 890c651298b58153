"""Embedded slices, the protocol of their sources, and several sources of one encoder combined."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from samri.errors import InputError
from samri_training.slices import SliceSource, split_named
from samri_training.store._info import EncoderFacts, StoreInfo


@dataclass(frozen=True, eq=False)
class EmbeddedSlice:
    """One slice's embedding with its ground truth: on its way into a store, or out of one.

    Attributes:
        name: Unique in its store.
        case: What is held out and compared as one: the patient, or the scan where patients aren't known.
        features: (C, G, G) float, the encoder's output. Out of a store float16 or float32, and read-only; copy it to
            keep it.
        mask: (H, W) label map at the slice's own size, 0 to 65535, 0 is background; read-only out of a store.
        spacing: (row, column) distance in mm; 1 where it is unknown (`StoreInfo.spacing_known`).
    """

    name: str
    case: str
    features: npt.NDArray[Any]
    mask: npt.NDArray[Any]
    spacing: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the slice."""
        return self.mask.shape[0], self.mask.shape[1]


class Embeddings(SliceSource[EmbeddedSlice], Protocol):
    """What training and evaluation read: a store, a published cache, or several of them."""

    @property
    def path(self) -> Path:
        """The folder, for messages."""
        ...

    @property
    def info(self) -> StoreInfo:
        """Which encoder and preprocessing made all of it."""
        ...

    @property
    def content_sha256(self) -> str | None:
        """SHA-256 of its content; None where that would take reading everything."""
        ...

    def names(self) -> Iterator[tuple[str, str]]:
        """(name, case) of every slice, in order; no embedding is read."""
        ...


class _Combined:
    """Parts one after the other; where two use one name or case for different things, folders are put before them."""

    def __init__(self, sources: Sequence[Embeddings]) -> None:
        self._sources = tuple(sources)
        self._ends = list(accumulate(len(source) for source in sources))
        self._before_names, self._before_cases = _prefixes(sources)
        self.path = sources[0].path
        known = all(source.info.spacing_known for source in sources)
        self.info = dataclasses.replace(sources[0].info, spacing_known=known)

    @property
    def content_sha256(self) -> str | None:
        each = [source.content_sha256 for source in self._sources]
        return None if None in each else hashlib.sha256("".join(map(str, each)).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> EmbeddedSlice:
        if not -len(self) <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)}")
        position = index % len(self)
        number = bisect_right(self._ends, position)
        stored = self._sources[number][position - (self._ends[number - 1] if number else 0)]
        return dataclasses.replace(
            stored, name=self._before_names[number] + stored.name, case=self._before_cases[number] + stored.case
        )

    def names(self) -> Iterator[tuple[str, str]]:
        for source, name, case in zip(self._sources, self._before_names, self._before_cases, strict=True):
            yield from ((name + own_name, case + own_case) for own_name, own_case in source.names())


def combine(sources: Sequence[Embeddings]) -> Embeddings:
    """Sources one after the other, as one; number formats may differ, encoders may not.

    Patients of one name in two datasets stay two: their cases then begin with the dataset's folder.

    Raises:
        InputError: There is none, one was made by another encoder or preprocessing than the first, or one is named
            twice.
    """
    if not sources:
        raise InputError("no embeddings: name at least one store")
    seen: set[Path] = set()
    for source in sources:
        _require_id(source, sources[0].info.embedding_id, f"{sources[0].path} ({sources[0].info.checkpoint})")
        if source.path.resolve() in seen:
            raise InputError(f"{source.path} is named twice, and its slices would count twice: name it once")
        seen.add(source.path.resolve())
    return sources[0] if len(sources) == 1 else _Combined(sources)


def _prefixes(sources: Sequence[Embeddings]) -> tuple[list[str], list[str]]:
    """What to put before the names and before the cases of each source; nothing where they differ anyway."""
    absolute = [source.path.absolute() for source in sources]
    above = Path(os.path.commonpath(absolute))
    folders = [path.relative_to(above).parts for path in absolute]
    whole = ["".join(f"{folder}/" for folder in each) for each in folders]
    # The splits of one dataset are of the same patients, or of others with names of their own.
    datasets = ["".join(f"{folder}/" for folder in each if split_named(folder) is None) for each in folders]
    names: dict[str, str] = {}
    cases: dict[str, str] = {}
    same_name = same_case = False
    for source, path, dataset in zip(sources, whole, datasets, strict=True):
        for name, case in source.names():
            same_name |= names.setdefault(name, path) != path
            same_case |= cases.setdefault(case, dataset) != dataset
    nothing = [""] * len(sources)
    return whole if same_name else nothing, datasets if same_case else nothing


def require_encoder(source: Embeddings, facts: EncoderFacts, encoder_name: str) -> None:
    """Make sure that `source` was made by the encoder of those facts; `encoder_name` is for the message.

    Raises:
        InputError: It was made by another one, or contradicts it.
    """
    _require_id(source, facts.embedding_id, encoder_name)
    info = source.info
    for what, stored, expected in (
        ("image size", info.image_size, facts.image_size),
        ("embedding shape", info.embedding_shape, facts.embedding_shape),
    ):
        if stored != expected:
            raise InputError(
                f"{source.path} is damaged: its {what} is {stored}, and {encoder_name} has {expected}: copy it again"
            )


def _require_id(source: Embeddings, embedding_id: str, encoder_name: str) -> None:
    info = source.info
    if info.embedding_id != embedding_id:
        raise InputError(
            f"{source.path} was embedded with another encoder or preprocessing ({info.checkpoint}, profile "
            f"{info.profile}, {info.encoder_precision}, id {info.embedding_id[:8]}) than that of {encoder_name} "
            f"(id {embedding_id[:8]}): use its own checkpoint, or embed the slices again"
        )
