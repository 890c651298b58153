"""Embeddings kept on disk, so that a slice is encoded once: the second run needs the decoder only."""

from __future__ import annotations

from samri_runtime.cache._cache import DEFAULT_MAX_BYTES, EmbeddingCache, Found, Kept
from samri_runtime.cache._file import STORED_PRECISIONS, StoredPrecision
from samri_runtime.cache._key import arithmetic_of, embedding_key

__all__ = [
    "DEFAULT_MAX_BYTES",
    "STORED_PRECISIONS",
    "EmbeddingCache",
    "Found",
    "Kept",
    "StoredPrecision",
    "arithmetic_of",
    "embedding_key",
]
