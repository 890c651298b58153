"""Whether a store still shows what lies in the data: images and masks may be corrected under the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from samri_runtime.cli import say
from samri_training.embed._sources import Source
from samri_training.store import StorePlan
from samri_training.store._manifest import ShardManifest
from samri_training.store._plan import INDEX_NAME, Shard


@dataclass(frozen=True, eq=False)
class Store:
    """A store that is being made.

    Attributes:
        source: Its slices.
        folder: Where it lies.
        plan: What `store.json` says.
        known: Shard's index to the SHA-256 of its inputs, as far as they were read.
    """

    source: Source
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
