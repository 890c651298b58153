"""The run itself: shard by shard, batch by batch, reading ahead of the encoder."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samri.errors import OutputError
from samri_training.embed._division import Share
from samri_training.embed._encoders import Encoder
from samri_training.embed._progress import Progress
from samri_training.embed._sources import Loaded, Source
from samri_training.store import EmbeddedSlice, EncoderFacts, ShardWriter, StoredDtype, StoreInfo, StorePlan
from samri_training.store._manifest import ShardManifest, write_index
from samri_training.store._plan import PLAN_NAME, Shard

# While one batch is encoded, this many are read and preprocessed.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        stores: Folder of each store, and how many of its shards are still missing.
        share: Of the work.
        slices: Embedded by this run; those that were there already don't count.
        seconds: It took.
    """

    stores: Mapping[Path, int]
    share: Share
    slices: int
    seconds: float

    @property
    def rate(self) -> float:
        """Slices a second."""
        return self.slices / self.seconds if self.slices else 0.0


def embed(
    sources: Sequence[Source],
    save_dir: str | Path,
    facts: EncoderFacts,
    encoder: Encoder | None,
    *,
    dtype: StoredDtype = "fp16",
    batch_size: int = 1,
    workers: int = 2,
    share: Share | None = None,
    slices_per_shard: int | None = None,
) -> Outcome:
    """Embed what isn't embedded yet, and write the index of every store that is then complete.

    Any number of processes may run at once, each with its share, or one after another with any shares: a shard is
    made by one of them, and comes out the same whichever it is.

    Args:
        sources: From `find_sources`.
        save_dir: Folder of the store; a source with a split gets a subfolder of that name.
        facts: Of the encoder.
        encoder: May be None when all sources are caches.
        dtype: Number format of the store.
        batch_size: Slices that are encoded at once.
        workers: Threads that read and preprocess; 0 for none beside the encoder's.
        share: Of the shards; by default all.
        slices_per_shard: By default it follows from the number of slices, or from the store that was begun.

    Raises:
        InputError: A slice can't be used, or the folder holds another store.
        OutputError: A store can't be written, or the disk has too little room.
    """
    started = time.monotonic()
    share = share or Share()
    plans = [_begin(source, Path(save_dir), facts, dtype, slices_per_shard) for source in sources]
    work = share.of([(place, shard) for place, (_, plan) in enumerate(plans) for shard in plan.shards])
    todo = [(place, shard) for place, shard in work if not _finished(*plans[place], shard)]
    _check_room(Path(save_dir), sum(plans[place][1].info.bytes_per_slice * shard.count for place, shard in todo))
    total, waiting = (sum(shard.count for _, shard in shards) for shards in (work, todo))
    done = 0
    with ThreadPoolExecutor(max(workers, 1)) as pool, Progress(total, total - waiting) as progress:
        for place, shard in todo:
            folder, plan = plans[place]
            with ShardWriter(folder, plan.info, shard, batch_size) as writer:
                progress.skip(writer.done)
                for loaded in _read_ahead(sources[place], facts, writer, batch_size, pool if workers else None):
                    writer.append(_embedded(loaded, sources[place], encoder))
                    done += len(loaded)
                    progress.advance(len(loaded))
                writer.seal(encoder.made_with if encoder else {})
    stores = {folder: _index(folder, plan) for folder, plan in plans}
    return Outcome(stores, share, done, time.monotonic() - started)


def _begin(
    source: Source, save_dir: Path, facts: EncoderFacts, dtype: StoredDtype, slices_per_shard: int | None
) -> tuple[Path, StorePlan]:
    folder = save_dir / source.split
    if slices_per_shard is None and (folder / PLAN_NAME).is_file():
        slices_per_shard = StorePlan.read(folder).slices_per_shard
    plan = StorePlan.of(StoreInfo.of(facts, dtype, source.kind, source.spacing_known), source.slices, slices_per_shard)
    plan.begin(folder)
    return folder, StorePlan.read(folder)


def _finished(folder: Path, plan: StorePlan, shard: Shard) -> bool:
    manifest = ShardManifest.read(folder, shard)
    if manifest is None:
        return False
    manifest.check_file(folder, plan)
    (folder / f"{shard.name}.journal").unlink(missing_ok=True)  # Of a process that was killed in its last moment.
    return True


def _check_room(save_dir: Path, needed: int) -> None:
    free = shutil.disk_usage(save_dir).free
    if needed > free:
        raise OutputError(
            f"{save_dir} has room for {free / 1e9:.1f} GB, and the embeddings to come take {needed / 1e9:.1f} GB: "
            "make room, or name another --save-dir"
        )


def _read_ahead(
    source: Source, facts: EncoderFacts, writer: ShardWriter, batch_size: int, pool: ThreadPoolExecutor | None
) -> Iterator[list[Loaded]]:
    """The batches of a shard that aren't in it yet, read in other threads while the caller encodes."""
    shard = writer.shard
    batches = [
        range(shard.start + first, shard.start + min(first + batch_size, shard.count))
        for first in range(writer.done, shard.count, batch_size)
    ]
    if pool is None:
        yield from ([source.load(index, facts) for index in batch] for batch in batches)
        return
    reading: deque[list[Future[Loaded]]] = deque()
    try:
        for batch in batches:
            reading.append([pool.submit(source.load, index, facts) for index in batch])
            if len(reading) > _BATCHES_AHEAD:
                yield [future.result() for future in reading.popleft()]
        while reading:
            yield [future.result() for future in reading.popleft()]
    finally:
        for future in (future for batch in reading for future in batch):
            future.cancel()


def _embedded(loaded: Sequence[Loaded], source: Source, encoder: Encoder | None) -> list[EmbeddedSlice]:
    if source.is_encoded:
        features = [item.array for item in loaded]
    else:
        assert encoder is not None, "slices need an encoder"
        features = list(encoder.encode(np.concatenate([item.array for item in loaded])))
    return [
        EmbeddedSlice(item.name, item.case, array, item.mask, item.spacing)
        for item, array in zip(loaded, features, strict=True)
    ]


def _index(folder: Path, plan: StorePlan) -> int:
    """Write the index if all shards are there; returns how many aren't."""
    manifests = [ShardManifest.read(folder, shard) for shard in plan.shards]
    finished = [manifest for manifest in manifests if manifest is not None]
    if len(finished) == len(manifests):
        write_index(folder, finished)
    return len(manifests) - len(finished)
