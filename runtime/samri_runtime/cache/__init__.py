"""Embeddings on disk, so that each slice is encoded once and later runs need only the decoder."""

from __future__ import annotations

from samri_runtime._embedding import STORED_PRECISIONS, StoredPrecision
from samri_runtime.cache._cache import DEFAULT_MAX_BYTES, EmbeddingCache
from samri_runtime.cache._key import arithmetic_of, embedding_key

__all__ = [
    "DEFAULT_MAX_BYTES",
    "STORED_PRECISIONS",
    "EmbeddingCache",
    "StoredPrecision",
    "arithmetic_of",
    "embedding_key",
]
