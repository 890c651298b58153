"""Several sources of embeddings as one, if the same encoder made them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from samri.errors import InputError
from samri_training.store._info import StoreInfo
from samri_training.store._store import StoredSlice


class Embeddings(Protocol):
    """What training and evaluation read: a store, a published cache, or several of them."""

    @property
    def path(self) -> Path:
        """The folder, for messages."""
        ...

    @property
    def info(self) -> StoreInfo:
        """Which encoder and preprocessing made all of it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> StoredSlice: ...


class _Combined:
    def __init__(self, parts: Sequence[Embeddings]) -> None:
        self._parts = tuple(parts)
        self._ends = list(accumulate(len(part) for part in parts))
        self.path = parts[0].path
        self.info = parts[0].info

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> StoredSlice:
        if not -len(self) <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)}")
        position = index % len(self)
        part = bisect_right(self._ends, position)
        return self._parts[part][position - (self._ends[part - 1] if part else 0)]


def combine(parts: Sequence[Embeddings]) -> Embeddings:
    """Sources one after the other, as one; number formats may differ, encoders may not.

    Raises:
        InputError: There is none, or one was made by another encoder or preprocessing than the first.
    """
    if not parts:
        raise InputError("no embeddings: name at least one store")
    for part in parts[1:]:
        require_encoder(part, parts[0].info.embedding_id, f"{parts[0].path} ({parts[0].info.checkpoint})")
    return parts[0] if len(parts) == 1 else _Combined(parts)


def require_encoder(source: Embeddings, embedding_id: str, wanted: str) -> None:
    """Make sure that `source` was made by the encoder of that id; `wanted` names it, or the checkpoint, for people.

    Raises:
        InputError: It was made by another one.
    """
    info = source.info
    if info.embedding_id != embedding_id:
        raise InputError(
            f"{source.path} was embedded with another encoder or preprocessing ({info.checkpoint}, profile "
            f"{info.profile}, {info.encoder_precision}, id {info.embedding_id[:8]}) than that of {wanted} "
            f"(id {embedding_id[:8]}): use its own checkpoint, or embed the slices again"
        )
