"""One short text that says which slices a run has, so that a resumed run notices others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from samri_training.store import Embeddings


def names_digest(source: Embeddings, samples: Sequence[int]) -> str:
    """SHA-256 over the names of these slices, in their order, as hex: everything random is drawn by that order."""
    names = [name for name, _ in source.names()]
    digest = hashlib.sha256()
    for index in samples:
        digest.update(f"{names[index]}\n".encode())
    return digest.hexdigest()
