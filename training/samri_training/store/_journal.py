"""Lines of a growing shard's journal: JSON, each behind its own checksum, so that a damaged one counts for nothing."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from samri_training.store._shard_file import SliceRow


def journal_line(values: Any) -> bytes:
    """A line of the journal."""
    text = json.dumps(values, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def rows_line(rows: Sequence[SliceRow]) -> bytes:
    """The line that claims a batch."""
    return journal_line([asdict(row) for row in rows])


def read_rows(line: bytes) -> list[SliceRow] | None:
    """The batch that a line claims; None where the line is torn or damaged."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        rows = [
            SliceRow(**{**row, "shape": tuple(row["shape"]), "spacing": tuple(row["spacing"])})
            for row in json.loads(text)
        ]
        return rows if all(_can_be(row) for row in rows) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _can_be(row: SliceRow) -> bool:
    whole = (*row.shape, row.mask_bytes, row.mask_itemsize, row.crc32)
    return (
        type(row.name) is type(row.case) is str
        and len(row.shape) == len(row.spacing) == 2
        and all(type(value) is int and 0 <= value < 1 << 32 for value in whole)
        and all(type(value) in (int, float) and math.isfinite(value) for value in row.spacing)
    )
