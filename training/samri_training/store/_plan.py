"""`store.json`: how many slices a store has, in what order, and how they are cut into shards.

The plan is a function of the data and the encoder alone. Every process of a run works it out for itself and finds the
same one, whatever their number; so who computes a shard changes nothing, and there is nothing to agree upon.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samri import opening
from samri.errors import InputError
from samri_training.store._info import StoreInfo, field
from samri_training.store._own_files import write_text

FORMAT = "samri-embeddings"
FORMAT_VERSION = "1.1"
PLAN_NAME = "store.json"
INDEX_NAME = "index.json"

# Enough shards for 64 processes where there are slices enough, and never more than 512 MiB in one (ViT-B, fp16).
_SHARDS_WANTED = 64
_LEAST, _MOST = 16, 256
# Far beyond any data set, and little enough to go through.
_MOST_SLICES, _MOST_SHARDS = 100_000_000, 1_000_000


@dataclass(frozen=True)
class Shard:
    """A stretch of the store's slices that lies in one file.

    Attributes:
        index: Counted from 0.
        start: Its first slice.
        count: How many slices.
    """

    index: int
    start: int
    count: int

    @property
    def name(self) -> str:
        """Name of its files, without the suffix."""
        return f"shard-{self.index:06d}"


@dataclass(frozen=True)
class StorePlan:
    """What `store.json` holds.

    Attributes:
        info: The encoder, the preprocessing and the number format.
        slices: How many.
        slices_sha256: SHA-256 of their names and cases, in order (`slices_digest`).
        slices_per_shard: The last shard may have fewer.
    """

    info: StoreInfo
    slices: int
    slices_sha256: str
    slices_per_shard: int

    @classmethod
    def of(cls, info: StoreInfo, slices: Sequence[tuple[str, str]], slices_per_shard: int | None = None) -> StorePlan:
        """The plan for these (name, case) pairs; `slices_per_shard` by default follows from their number."""
        default = min(max(-(-len(slices) // _SHARDS_WANTED), _LEAST), _MOST)
        return cls(info, len(slices), slices_digest(slices), slices_per_shard or default)

    @property
    def shards(self) -> list[Shard]:
        """All shards, in order."""
        size = self.slices_per_shard
        starts = range(0, self.slices, size)
        return [Shard(index, start, min(size, self.slices - start)) for index, start in enumerate(starts)]

    def to_json(self) -> str:
        """The text of `store.json`."""
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "slices": self.slices,
            "slices_sha256": self.slices_sha256,
            "slices_per_shard": self.slices_per_shard,
            **self.info.to_json(),
        }
        return json.dumps(with_checksum(values), indent=2, allow_nan=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> StorePlan:
        """Read `store.json`.

        Raises:
            InputError: No store there, or its description is damaged or too new.
        """
        file = folder / PLAN_NAME
        if not file.is_file():
            raise InputError(_no_store(folder))
        values = read_json(file)
        check_format(values, FORMAT, file)
        slices = field(values, "slices", int, str(file))
        per_shard = field(values, "slices_per_shard", int, str(file))
        if slices < 1 or per_shard < 1:
            raise InputError(f"{file} is damaged (no slices): copy the store again")
        if slices > _MOST_SLICES or slices > _MOST_SHARDS * per_shard:
            raise InputError(
                f"{file} is damaged ({slices} slices, {per_shard} in a shard, which no store has): copy the store again"
            )
        info = StoreInfo.from_json(values, str(file))
        plan = cls(info, slices, field(values, "slices_sha256", str, str(file)), per_shard)
        check_checksum(values, str(file))
        return plan

    def begin(self, folder: Path) -> None:
        """Write `store.json`, or make sure that the one there plans the same store.

        Raises:
            InputError: The folder holds another store: of another encoder, number format, or other slices.
            OutputError: The folder can't be written.
        """
        if not os.path.lexists(folder / PLAN_NAME):
            write_text(folder / PLAN_NAME, self.to_json())
        # Read back, since another process may have come first with something else.
        self._check_same(StorePlan.read(folder), folder)

    def _check_same(self, existing: StorePlan, folder: Path) -> None:
        other = "choose another --save-dir"
        mine, theirs = self.info, existing.info
        if mine.embedding_id != theirs.embedding_id:
            raise InputError(
                f"{folder} holds embeddings of another encoder or preprocessing ({theirs.checkpoint}, profile "
                f"{theirs.profile}, {theirs.encoder_precision}, id {theirs.embedding_id[:8]}) than {mine.checkpoint}, "
                f"profile {mine.profile}, {mine.encoder_precision}: they can't be mixed; {other}"
            )
        if mine.dtype != theirs.dtype:
            raise InputError(
                f"{folder} holds {theirs.dtype} embeddings, not {mine.dtype}: pass "
                f"--store-dtype {theirs.dtype} or {other}"
            )
        if (self.slices, self.slices_sha256) != (existing.slices, existing.slices_sha256):
            raise InputError(
                f"{folder} was started for {existing.slices} slices, and there are {self.slices} now, or other names: "
                f"restore the data to finish it, or {other}"
            )
        if self.slices_per_shard != existing.slices_per_shard:
            raise InputError(
                f"{folder} was started with {existing.slices_per_shard} slices per shard: pass --shard-size "
                f"{existing.slices_per_shard}, or {other}"
            )


def slices_digest(slices: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the slices' names and cases, in order."""
    digest = hashlib.sha256()
    for pair in slices:
        digest.update(json.dumps(pair).encode() + b"\n")
    return digest.hexdigest()


def read_json(file: Path) -> Any:
    """The values in one of a store's JSON files.

    Raises:
        InputError: It can't be read or isn't JSON.
    """
    return opening.read_json(file, remedy="copy the store again")


def check_format(values: Any, expected: str, file: Path) -> None:
    """A JSON file is of the expected format, in a version that this samri reads.

    Raises:
        InputError: It isn't.
    """
    if field(values, "format", str, str(file)) != expected:
        raise InputError(f"{file} isn't a part of a store: its format is {values['format']!r}")
    version = field(values, "format_version", str, str(file))
    if version.partition(".")[0] != FORMAT_VERSION.partition(".")[0]:
        raise InputError(
            f"{file} has format version {version}, and this samri reads {FORMAT_VERSION}: pip install -U samri"
        )


def _no_store(folder: Path) -> str:
    if not folder.is_dir():
        return f"no embedding store at {folder}: there is no such folder (samri-embed makes one)"
    inside = sorted(file.parent.name for file in folder.glob(f"*/{PLAN_NAME}"))
    if inside:
        return f"{folder} holds the stores {', '.join(inside)}: name one of them, such as {folder / inside[0]}"
    return f"{folder} is not an embedding store: it holds no {PLAN_NAME} (samri-embed makes one)"


_KEY = "checksum"


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values and their checksum: SHA-256 of their JSON with sorted keys and no spaces."""
    return {**values, _KEY: _digest(values)}


def check_checksum(values: Mapping[str, Any], where: str) -> None:
    """The values are those that were written; `where` names the file. Files of format 1.0 have no checksum.

    Raises:
        InputError: They aren't.
    """
    if _KEY not in values and values.get("format_version") == "1.0":
        return
    others = {key: value for key, value in values.items() if key != _KEY}
    if field(values, _KEY, str, where) != _digest(others):
        raise InputError(f"{where} is damaged (its checksum differs): copy the store again")


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
