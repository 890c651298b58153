"""An embedding run: which shards are missing or out of date, reading ahead of the encoder, and progress."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samri.errors import OutputError
from samri_runtime.cli import ProgressBar, say
from samri_training.embed._division import WorkShare
from samri_training.embed._encoders import Encoder
from samri_training.embed._sources import Loaded, SliceSet
from samri_training.store import EmbeddedSlice, EncoderFacts, ShardWriter, StoredDtype, StoreInfo, StorePlan
from samri_training.store._manifest import ShardManifest, write_index
from samri_training.store._plan import INDEX_NAME, PLAN_NAME, Shard

# While one batch is encoded, this many are read and preprocessed.
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class EmbedOutcome:
    """Result of a run.

    Attributes:
        stores: Folder of each store, and how many of its shards are still missing.
        share: This process's share of the work.
        slices: Number of slices embedded by this run, without those that were there already.
        seconds: Duration of the run.
        changed: Shards that were embedded again, since an image or mask of theirs is no longer the same.
    """

    stores: Mapping[Path, int]
    share: WorkShare
    slices: int
    seconds: float
    changed: int = 0

    @property
    def rate(self) -> float:
        """Slices per second."""
        return self.slices / self.seconds if self.slices else 0.0


def embed(
    sources: Sequence[SliceSet],
    save_dir: str | Path,
    facts: EncoderFacts,
    encoder: Encoder | None,
    *,
    dtype: StoredDtype = "fp16",
    batch_size: int = 1,
    workers: int = 2,
    share: WorkShare | None = None,
    slices_per_shard: int | None = None,
) -> EmbedOutcome:
    """Embed what isn't embedded yet, and write the index of every store that is then complete.

    Any number of processes may run at once, each with its share, or one after another with any shares: a shard is
    made by one of them, and comes out the same whichever it is.

    Args:
        sources: From `find_sources`.
        save_dir: Folder of the store; a source with a split gets a subfolder of that name.
        facts: The encoder's facts.
        encoder: May be None when all sources are caches.
        dtype: Number format of the store.
        batch_size: Slices that are encoded at once.
        workers: Threads that read and preprocess; 0 for none beside the encoder's.
        share: Share of the shards to embed; all of them by default.
        slices_per_shard: By default it follows from the number of slices, or from the unfinished store in the folder.

    Raises:
        InputError: A slice can't be used, or the folder holds another store.
        OutputError: A store can't be written, or the disk has too little room.
    """
    started = time.monotonic()
    share = share or WorkShare()
    stores = [_begin(source, Path(save_dir), facts, dtype, slices_per_shard) for source in sources]
    work = share.of([(store, shard) for store in stores for shard in store.plan.shards])
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        changed = remove_changed(stores, work, pool)
        todo = [(store, shard) for store, shard in work if not _finished(store, shard)]
        _check_room(Path(save_dir), stores, share)
        total, waiting = (sum(shard.count for _, shard in shards) for shards in (work, todo))
        done = 0
        with ProgressBar(total, "slice", total - waiting) as progress:
            for store, shard in todo:
                inputs = store.inputs_sha256(shard, pool)
                with ShardWriter(store.folder, store.plan.info, shard, batch_size, inputs) as writer:
                    progress.skip(writer.done)
                    for loaded in _read_ahead(store.source, facts, writer, batch_size, pool if workers else None):
                        writer.append(_embedded(loaded, encoder))
                        done += len(loaded)
                        progress.advance(len(loaded))
                    writer.seal(encoder.made_with if encoder else {})
    missing = {store.folder: _index(store) for store in stores}
    return EmbedOutcome(missing, share, done, time.monotonic() - started, changed)


def _begin(
    source: SliceSet, save_dir: Path, facts: EncoderFacts, dtype: StoredDtype, slices_per_shard: int | None
) -> Store:
    folder = save_dir / source.split
    if slices_per_shard is None and (folder / PLAN_NAME).is_file():
        slices_per_shard = StorePlan.read(folder).slices_per_shard
    plan = StorePlan.of(StoreInfo.of(facts, dtype, source.kind, source.spacing_known), source.slices, slices_per_shard)
    plan.begin(folder)
    return Store(source, folder, StorePlan.read(folder))


def _finished(store: Store, shard: Shard) -> bool:
    manifest = ShardManifest.read(store.folder, shard)
    if manifest is None:
        return False
    manifest.check_file(store.folder, store.plan)
    # Left by a process that was killed right after it sealed the shard.
    (store.folder / f"{shard.name}.journal").unlink(missing_ok=True)
    return True


def _check_room(save_dir: Path, stores: Sequence[Store], share: WorkShare) -> None:
    """Counts every missing shard, also those of other processes: all parts of a run share one disk."""
    needed = 0
    for store in stores:
        for shard in store.plan.shards:
            if ShardManifest.read(store.folder, shard) is None:
                part = store.folder / f"{shard.name}.part"
                there = part.stat().st_size if part.is_file() else 0
                needed += max(store.plan.info.bytes_per_slice * shard.count - there, 0)
    free = shutil.disk_usage(save_dir).free
    if needed > free:
        of_all = f" (of all {share.count} parts together)" * (share.count > 1)
        raise OutputError(
            f"{save_dir} has room for {free / 1e9:.1f} GB, and the embeddings to come{of_all} take "
            f"{needed / 1e9:.1f} GB: make room, or name another --save-dir"
        )


def _read_ahead(
    source: SliceSet, facts: EncoderFacts, writer: ShardWriter, batch_size: int, pool: ThreadPoolExecutor | None
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


def _embedded(loaded: Sequence[Loaded], encoder: Encoder | None) -> list[EmbeddedSlice]:
    inputs = [image for _, image in loaded if image is not None]
    if inputs:
        assert encoder is not None, "slices need an encoder"
        features = iter(encoder.encode(np.concatenate(inputs)))
    return [
        item
        if isinstance(item, EmbeddedSlice)
        else EmbeddedSlice(item.name, item.case, next(features), item.mask, item.spacing)
        for item, _ in loaded
    ]


def _index(store: Store) -> int:
    """Write the index if all shards are there; returns how many aren't."""
    manifests = [ShardManifest.read(store.folder, shard) for shard in store.plan.shards]
    finished = [manifest for manifest in manifests if manifest is not None and not store.is_changed(manifest)]
    if len(finished) == len(manifests):
        write_index(store.folder, finished)
    return len(manifests) - len(finished)


@dataclass(frozen=True, eq=False)
class Store:
    """A store that is being made.

    Attributes:
        source: Its slices.
        folder: Where it lies.
        plan: What `store.json` says.
        known: Shard's index to the SHA-256 of its inputs, as far as they were read.
    """

    source: SliceSet
    folder: Path
    plan: StorePlan
    known: dict[int, str] = field(default_factory=dict)

    def inputs_sha256(self, shard: Shard, pool: ThreadPoolExecutor) -> str:
        """SHA-256 over the files that a shard's slices come from, as they are now."""
        digest = hashlib.sha256()
        for fingerprint in pool.map(self.source.fingerprint, range(shard.start, shard.start + shard.count)):
            digest.update(fingerprint.encode())
        self.known[shard.index] = digest.hexdigest()
        return self.known[shard.index]

    def is_changed(self, manifest: ShardManifest) -> bool:
        """A finished shard was made from other files than those that were read now, if they were."""
        now = self.known.get(manifest.shard.index)
        return None not in (now, manifest.inputs_sha256) and now != manifest.inputs_sha256


def remove_changed(stores: Sequence[Store], work: Sequence[tuple[Store, Shard]], pool: ThreadPoolExecutor) -> int:
    """Remove the finished shards among `work` whose slices have changed since, so that they are made again.

    Returns:
        How many. If there are any, the shards of others are looked at as well, for `Store.is_changed`.
    """
    changed = [(store, shard) for store, shard in work if _look(store, shard, pool)]
    if changed:
        say(f"note: {len(changed)} shard(s) hold slices whose image or mask has changed since: they are embedded again")
        for each in stores:
            for shard in each.plan.shards:
                if shard.index not in each.known:
                    _look(each, shard, pool)
    for store, shard in changed:
        # In this order: at any moment, a reader finds the old shard or none.
        for name in (INDEX_NAME, f"{shard.name}.json", f"{shard.name}.safetensors"):
            (store.folder / name).unlink(missing_ok=True)
    unknown = sum(_is_unrecorded(store, shard) for store, shard in work)
    if unknown:
        say(
            f"note: {unknown} shard(s) of an earlier samri don't record what they were made from: if images or masks "
            "have changed since, delete these shards and run the command again"
        )
    return len(changed)


def _look(store: Store, shard: Shard, pool: ThreadPoolExecutor) -> bool:
    manifest = ShardManifest.read(store.folder, shard)
    if manifest is None or manifest.inputs_sha256 is None:
        return False
    store.inputs_sha256(shard, pool)
    return store.is_changed(manifest)


def _is_unrecorded(store: Store, shard: Shard) -> bool:
    manifest = ShardManifest.read(store.folder, shard)
    return manifest is not None and manifest.inputs_sha256 is None
