"""Writing a shard so that a kill loses at most one batch and never changes the result.

While it grows, a shard is `shard-000012.part`, with `shard-000012.journal` beside it: a line for each batch, written
after the batch's bytes. To resume, every slice that the journal claims is read again and its checksum compared; writing
continues behind the last intact batch. A finished shard gets its tables and header, its manifest with the SHA-256, and
its name, in that order; each of these steps can be repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from samri.errors import InputError, OutputError
from samri.hashing import file_sha256
from samri.opening import read_regular
from samri.staging import as_output_error
from samri_training.store._embeddings import EmbeddedSlice
from samri_training.store._info import StoreInfo
from samri_training.store._manifest import ShardManifest
from samri_training.store._own_files import lock_own, open_own, rename_own, write_all, write_text
from samri_training.store._plan import FORMAT, FORMAT_VERSION, Shard
from samri_training.store._shard_file import HEADER_BYTES, SliceEntry, header, pack_mask, tables


class ShardWriter:
    """One shard being written; a context manager. Leaving it early keeps what is done for the next one.

    Args:
        folder: Folder of the store.
        info: What the store says of itself.
        shard: Which shard.
        batch_size: Slices that are encoded at once. An unfinished shard of another batch size is restarted, since the
            last digits of an embedding may depend on its batch.
        inputs_sha256: SHA-256 of the files that the slices come from. An unfinished shard of other files is restarted.

    Raises:
        OutputError: The folder can't be written, or another process is writing this shard.
    """

    def __init__(
        self, folder: Path, info: StoreInfo, shard: Shard, batch_size: int, inputs_sha256: str | None = None
    ) -> None:
        self.shard = shard
        self.rows: list[SliceEntry] = []
        self._info = info
        self._folder = folder
        self._journal_path = folder / f"{shard.name}.journal"
        self._part = folder / f"{shard.name}.part"
        self._inputs_sha256 = inputs_sha256
        self._head = journal_line(
            {
                **{"embedding_id": info.embedding_id, "dtype": info.dtype, "batch_size": batch_size},
                **{**asdict(shard), "inputs_sha256": inputs_sha256},
            }
        )
        with _writing(self._part):
            file = lock_own(self._part)
            if file is None:
                raise OutputError(
                    f"{self._part} is being written by another samri-embed: wait for it, or give each process its own "
                    "--part"
                )
            self._file = file
            self._journal: FileIO | None = None
            try:
                self._resume()
            except BaseException:
                self._close()
                raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @property
    def done(self) -> int:
        """How many of the shard's slices are in it already, from its first on."""
        return len(self.rows)

    def append(self, slices: Sequence[EmbeddedSlice]) -> None:
        """Write the next batch.

        Raises:
            InputError: An embedding isn't finite in the store's number format.
            OutputError: The disk is full, or the like.
        """
        assert self._journal is not None
        with _writing(self._part):
            batch = []
            mask_at = self._masks_begin + sum(row.mask_bytes for row in self.rows)
            for place, item in enumerate(slices, start=self.done):
                features = self._stored(item)
                packed, itemsize = pack_mask(item.mask)
                write_all(self._file, features, HEADER_BYTES + place * self._info.bytes_per_slice)
                write_all(self._file, packed, mask_at)
                mask_at += len(packed)
                crc = zlib.crc32(packed, zlib.crc32(features.data))
                shape = (item.mask.shape[0], item.mask.shape[1])
                batch.append(SliceEntry(item.name, item.case, shape, item.spacing, len(packed), itemsize, crc))
            write_all(self._journal, rows_line(batch), self._journal.tell())
            self.rows += batch

    def seal(self, made_with: Mapping[str, str]) -> ShardManifest:
        """Finish the shard, once all its slices are in it.

        Args:
            made_with: Versions of the programs, and what the encoder ran on, for the manifest.

        Raises:
            OutputError: The disk is full, or the like.
        """
        assert self.done == self.shard.count, "a shard is sealed when it is full"
        with _writing(self._part):
            tables_sha256 = self._write_tables()
            os.fsync(self._file.fileno())
            manifest = ShardManifest(
                shard=self.shard,
                embedding_id=self._info.embedding_id,
                bytes=self._part.stat().st_size,
                sha256=file_sha256(self._part),
                made_with=dict(made_with),
                tables_sha256=tables_sha256,
                inputs_sha256=self._inputs_sha256,
            )
            # A manifest counts for nothing until its shard has its name.
            write_text(self._folder / f"{self.shard.name}.json", manifest.to_json())
            if self._journal is not None:
                self._journal.close()
            rename_own(self._file, self._part, self._folder / manifest.file)
            self._journal_path.unlink(missing_ok=True)
        return manifest

    @property
    def _masks_begin(self) -> int:
        return HEADER_BYTES + self.shard.count * self._info.bytes_per_slice

    def _stored(self, item: EmbeddedSlice) -> npt.NDArray[Any]:
        if item.features.shape != self._info.embedding_shape:
            raise InputError(
                f"the embedding of {item.name} has shape {item.features.shape}, and this encoder makes "
                f"{self._info.embedding_shape}: it comes from another encoder"
            )
        with np.errstate(over="ignore"):  # What doesn't fit becomes infinite, and is refused below.
            features = np.ascontiguousarray(item.features, dtype=self._info.numpy_dtype)
        if not np.isfinite(features).all():
            raise InputError(
                f"the embedding of {item.name} holds NaN or infinite values as {self._info.dtype}: "
                "check the encoder, or store it with --store-dtype fp32"
            )
        return features

    def _write_tables(self) -> str:
        """Write all but the embeddings and masks; returns the SHA-256 of it (`_shard_file.tables_digest`)."""
        mask_bytes = sum(row.mask_bytes for row in self.rows)
        padded = -(-mask_bytes // 8) * 8
        small = tables(self.rows)
        features = (self.shard.count, *self._info.embedding_shape)
        layout = {
            "features": (self._info.numpy_dtype, features),
            "masks": (np.dtype("<u1"), (padded,)),
            **{name: (table.dtype, table.shape) for name, table in small.items()},
        }
        metadata = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "embedding_id": self._info.embedding_id,
            "profile": self._info.profile,
            "checkpoint": self._info.checkpoint,
        }
        at = self._masks_begin + mask_bytes
        for piece in (b"\0" * (padded - mask_bytes), *(table.tobytes() for table in small.values())):
            write_all(self._file, piece, at)
            at += len(piece)
        self._file.truncate(at)
        head = header(layout, metadata)
        write_all(self._file, head, 0)
        return hashlib.sha256(head + b"".join(table.tobytes() for table in small.values())).hexdigest()

    def _resume(self) -> None:
        """Take over what an earlier process left, as far as it is whole; cut off the rest."""
        complete = 0
        for rows, end in self._claimed():
            if not self._whole(rows):
                break
            self.rows += rows
            complete = end
        self._journal = open_own(self._journal_path)
        self._journal.truncate(complete)
        self._journal.seek(complete)
        if not complete:
            write_all(self._journal, self._head, 0)

    def _claimed(self) -> Iterator[tuple[list[SliceEntry], int]]:
        """Batches that the journal claims, each with the journal's length up to it."""
        if not self._journal_path.is_file():
            return
        lines = read_regular(self._journal_path, follow=False).splitlines(keepends=True)
        if not lines or lines[0] != self._head:
            return
        end = len(lines[0])
        yield [], end
        for line in lines[1:]:
            rows = read_rows(line)
            if rows is None:
                return
            end += len(line)
            yield rows, end

    def _whole(self, rows: list[SliceEntry]) -> bool:
        """The bytes of these next slices are in the file, unchanged."""
        mask_at = self._masks_begin + sum(row.mask_bytes for row in self.rows)
        if self.done + len(rows) > self.shard.count:
            return False
        for place, row in enumerate(rows, start=self.done):
            features = _read(self._file, HEADER_BYTES + place * self._info.bytes_per_slice, self._info.bytes_per_slice)
            packed = _read(self._file, mask_at, row.mask_bytes)
            if zlib.crc32(packed, zlib.crc32(features)) != row.crc32:
                return False
            mask_at += row.mask_bytes
        return True

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._file.close()


def _read(file: FileIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _writing(path: Path) -> contextlib.AbstractContextManager[None]:
    return as_output_error(path, "; what is finished is kept, so make room and run samri-embed again")


def journal_line(values: Any) -> bytes:
    """A line of the journal: JSON behind its own checksum, so that a damaged line is ignored."""
    text = json.dumps(values, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def rows_line(rows: Sequence[SliceEntry]) -> bytes:
    """The line that claims a batch."""
    return journal_line([asdict(row) for row in rows])


def read_rows(line: bytes) -> list[SliceEntry] | None:
    """The batch that a line claims; None where the line is torn or damaged."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        rows = [
            SliceEntry(**{**row, "shape": tuple(row["shape"]), "spacing": tuple(row["spacing"])})
            for row in json.loads(text)
        ]
        return rows if all(_can_be(row) for row in rows) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _can_be(row: SliceEntry) -> bool:
    whole = (*row.shape, row.mask_bytes, row.mask_itemsize, row.crc32)
    return (
        type(row.name) is type(row.case) is str
        and len(row.shape) == len(row.spacing) == 2
        and all(type(value) is int and 0 <= value < 1 << 32 for value in whole)
        and all(type(value) in (int, float) and math.isfinite(value) for value in row.spacing)
    )
