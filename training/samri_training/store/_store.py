"""Reading a store: slice i as views of memory-mapped shards."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samri_training.store._embeddings import EmbeddedSlice
from samri_training.store._info import StoreInfo
from samri_training.store._manifest import ShardManifest, read_manifests
from samri_training.store._plan import StorePlan
from samri_training.store._shard_file import ShardFile

# Maps held open at once: each costs a file descriptor.
_OPEN_SHARDS = 64
# Embeddings whose pages stay in this process's memory after they were read.
_RESIDENT = 32


class EmbeddingStore:
    """A finished store. May be read from several threads and processes at once; pickles as its path.

    Its memory doesn't grow with the store: the pages of a few embeddings at a time are its own, all others belong to
    the system's cache. A slice's checksum is compared when this process reads it for the first time.

    Attributes:
        path: Its folder.
        info: Which encoder and preprocessing made it, and how.
    """

    def __init__(self, path: Path, plan: StorePlan, manifests: list[ShardManifest]) -> None:
        self.path = path
        self.info: StoreInfo = plan.info
        self._plan = plan
        self._manifests = manifests
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._checked = np.zeros(plan.slices, dtype=np.bool_)
        self._recent: deque[tuple[ShardFile, int]] = deque()
        self._turn = threading.Lock()

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingStore:
        """Open the store in folder `path`; no embedding is read yet.

        Raises:
            InputError: No store there, or it is incomplete, or a shard is missing, truncated or another encoder's.
        """
        folder = Path(path)
        plan = StorePlan.read(folder)
        manifests = read_manifests(folder, plan)
        for manifest in manifests:
            manifest.check_file(folder, plan)
        return cls(folder, plan, manifests)

    def __len__(self) -> int:
        return self._plan.slices

    def __getitem__(self, index: int) -> EmbeddedSlice:
        """Slice `index`, in the order of the names.

        Raises:
            IndexError: There are fewer slices.
            InputError: The shard is damaged there.
        """
        shard, place = self._locate(index)
        shard.read_ahead(place)
        position = index % len(self)
        if not self._checked[position]:
            shard.check(place)
            self._checked[position] = True
        self._remember(shard, place)
        row = shard.row(place)
        return EmbeddedSlice(row.name, row.case, shard.features[place], shard.mask(place), row.spacing)

    def __iter__(self) -> Iterator[EmbeddedSlice]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingStore.open, (self.path,)

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.path)!r}, {len(self)} slices)"

    def mask(self, index: int) -> npt.NDArray[Any]:
        """The (H, W) label map of slice `index` alone: what choosing a label needs, without touching the embedding.

        Raises:
            IndexError: There are fewer slices.
            InputError: The shard is damaged there.
        """
        shard, place = self._locate(index)
        return shard.mask(place)

    def names(self) -> Iterator[tuple[str, str]]:
        """(name, case) of every slice, in order, shard by shard."""
        for manifest in self._manifests:
            yield from self._shard(manifest.shard.index).names()

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the store, from those of its shards: a corrected mask changes it."""
        return hashlib.sha256("".join(manifest.sha256 for manifest in self._manifests).encode()).hexdigest()

    def verify(self) -> Iterator[str]:
        """Hash every shard; yields the name of each one that is whole.

        Raises:
            InputError: The first one that isn't.
        """
        for manifest in self._manifests:
            manifest.check_hash(self.path)
            yield manifest.file

    def close(self) -> None:
        """Let go of all files; arrays handed out stay valid, and the next slice opens its shard again."""
        with self._turn:
            self._recent.clear()
            self._open.clear()

    def _remember(self, shard: ShardFile, place: int) -> None:
        with self._turn:
            self._recent.append((shard, place))
            if len(self._recent) > _RESIDENT:
                old, last = self._recent.popleft()
                old.release(last)

    def _locate(self, index: int) -> tuple[ShardFile, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"slice {index} of a store of {len(self)}")
        number, place = divmod(index % len(self), self._plan.slices_per_shard)
        return self._shard(number), place

    def _shard(self, number: int) -> ShardFile:
        with self._turn:
            shard = self._open.pop(number, None)
            if shard is None:
                manifest = self._manifests[number]
                count, tables = manifest.shard.count, manifest.tables_sha256
                shard = ShardFile(self.path / manifest.file, self.info, count, tables)
            self._open[number] = shard
            while len(self._open) > _OPEN_SHARDS:
                # Arrays handed out keep their map alive; without any, it is unmapped here.
                self._open.popitem(last=False)
            return shard
