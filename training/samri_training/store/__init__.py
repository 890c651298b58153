"""The embedding store: the frozen encoder's output, computed once and memory-mapped in every epoch.

A store is a folder of a few large files (see docs/embeddings.md): `store.json` says which encoder and preprocessing
made it, each shard is a safetensors file with a manifest that holds its SHA-256, `index.json` follows from those.
"""

from __future__ import annotations

from samri_training.store._embeddings import EmbeddedSlice, Embeddings, combine, require_encoder
from samri_training.store._info import EncoderFacts, StoredDtype, StoreInfo
from samri_training.store._plan import PLAN_NAME, StorePlan
from samri_training.store._shard_writer import ShardWriter
from samri_training.store._store import EmbeddingStore

__all__ = [
    "PLAN_NAME",
    "EmbeddedSlice",
    "EmbeddingStore",
    "Embeddings",
    "EncoderFacts",
    "ShardWriter",
    "StoreInfo",
    "StorePlan",
    "StoredDtype",
    "combine",
    "require_encoder",
]
