"""Whether and where `samri-run` keeps embeddings: the options of the cache."""

from __future__ import annotations

import re
from pathlib import Path

import click

from samri_runtime.cache import DEFAULT_MAX_BYTES, EmbeddingCache, StoredPrecision

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_LONGEST_SIZE = 18  # Digits; what is longer no disk holds.


def byte_size_of(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Callback of `--cache-size`: a number of bytes from `500MB`, `4GB` or a plain number."""
    if text is None:
        return None
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?B?)", text.strip(), re.IGNORECASE | re.ASCII)
    if matched is None or len(matched[1]) > _LONGEST_SIZE:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 4GB.")
    unit = matched[2].upper()
    return int(float(matched[1]) * _UNITS[unit if unit in _UNITS else f"{unit}B"])


def choose_cache(
    folder: Path | None, no_cache: bool, max_bytes: int | None, precision: StoredPrecision | None
) -> EmbeddingCache | None:
    """The cache that the options ask for, or None.

    Raises:
        click.UsageError: A cache that shall not be, and a wish about it.
    """
    if no_cache:
        if (folder, max_bytes, precision) != (None, None, None):
            raise click.UsageError("--no-cache can't be combined with --cache-dir, --cache-size or --cache-dtype.")
        return None
    size = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
    return EmbeddingCache(folder, precision=precision or "fp32", max_bytes=size)
