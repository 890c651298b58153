"""Manifests of shards, and the index of a store, which is derived from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samri.errors import InputError
from samri.hashing import file_sha256
from samri_training.store import _info
from samri_training.store._own_files import write_text
from samri_training.store._plan import (
    FORMAT_VERSION,
    INDEX_NAME,
    Shard,
    StorePlan,
    check_checksum,
    check_format,
    read_json,
    with_checksum,
)

_SHARD_FORMAT = "samri-embeddings-shard"
_INDEX_FORMAT = "samri-embeddings-index"


@dataclass(frozen=True)
class ShardManifest:
    """Facts of one finished shard.

    Attributes:
        shard: Which slices it holds.
        embedding_id: Id of the encoder that made it.
        bytes: Size of the file.
        sha256: SHA-256 of the file.
        made_with: Versions of the programs that made it, and what the encoder ran on.
        tables_sha256: SHA-256 of the file's header and small tables; None in a manifest of format 1.0.
        inputs_sha256: SHA-256 of the files that its slices came from; None where that wasn't recorded.
    """

    shard: Shard
    embedding_id: str
    bytes: int
    sha256: str
    made_with: Mapping[str, str] = field(default_factory=dict)
    tables_sha256: str | None = None
    inputs_sha256: str | None = None

    @property
    def file(self) -> str:
        """Name of the shard's file."""
        return f"{self.shard.name}.safetensors"

    def to_json(self) -> str:
        """The text of the shard's manifest."""
        values = {
            "format": _SHARD_FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "shard": asdict(self.shard),
        }
        return json.dumps(with_checksum(values), indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path, shard: Shard) -> ShardManifest | None:
        """The manifest of that shard, or None when there is none or its shard isn't finished.

        Raises:
            InputError: It is damaged, or of another shard or store.
        """
        file = folder / f"{shard.name}.json"
        if not file.is_file() or not (folder / f"{shard.name}.safetensors").is_file():
            return None
        values = read_json(file)
        check_format(values, _SHARD_FORMAT, file)
        if values.get("shard") != asdict(shard):
            raise InputError(f"{file} describes other slices than {shard.name} of this store: delete it and its shard")
        manifest = cls._of(shard, values, file)
        check_checksum(values, str(file))
        return manifest

    @classmethod
    def _of(cls, shard: Shard, values: Any, file: Path) -> ShardManifest:
        where = str(file)
        made_with = values.get("made_with") if isinstance(values, Mapping) else None
        return cls(
            shard,
            _info.field(values, "embedding_id", str, where),
            _info.field(values, "bytes", int, where),
            _info.field(values, "sha256", str, where),
            made_with if isinstance(made_with, dict) else {},
            _optional(values, "tables_sha256", where),
            _optional(values, "inputs_sha256", where),
        )

    def check_file(self, folder: Path, plan: StorePlan) -> None:
        """The shard's file is there, of the right length, and of the store's encoder.

        Raises:
            InputError: It isn't.
        """
        path = folder / self.file
        if self.embedding_id != plan.info.embedding_id:
            raise InputError(
                f"{path} was made by another encoder than the rest of its store: put the store's own shard back, "
                "or delete it and run samri-embed again"
            )
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path} is missing: run samri-embed again, or copy it again") from error
        if size != self.bytes:
            raise InputError(
                f"{path} is damaged ({size} bytes, not {self.bytes}): delete it and run samri-embed again, "
                "or copy it again"
            )
        if size < self.shard.count * plan.info.bytes_per_slice:
            raise InputError(
                f"{path} is too small for its {self.shard.count} embeddings of {plan.info.bytes_per_slice} bytes: "
                "copy the store again"
            )

    def check_hash(self, folder: Path) -> None:
        """The shard's bytes are those that were written.

        Raises:
            InputError: They aren't.
        """
        path = folder / self.file
        try:
            digest = file_sha256(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        if digest != self.sha256:
            raise InputError(
                f"{path} is damaged (its SHA-256 differs): delete it and run samri-embed again, or copy it again"
            )


def read_manifests(folder: Path, plan: StorePlan) -> list[ShardManifest]:
    """The manifests of all shards: from `index.json` where there is one, else from the shards' own.

    Raises:
        InputError: Shards are missing, or something is damaged.
    """
    shards = plan.shards
    file = folder / INDEX_NAME
    if not file.is_file():
        pairs = [(shard, ShardManifest.read(folder, shard)) for shard in shards]
        missing = [shard for shard, manifest in pairs if manifest is None]
        if missing:
            raise InputError(
                f"{folder} is incomplete: {len(missing)} of its {len(shards)} shards are missing, from "
                f"{missing[0].name}: run samri-embed again with the same data and --save-dir"
            )
        return [manifest for _, manifest in pairs if manifest is not None]
    values = read_json(file)
    check_format(values, _INDEX_FORMAT, file)
    entries = _info.field(values, "shards", list, str(file))
    if len(entries) != len(shards):
        raise InputError(f"{file} lists {len(entries)} shards, and the store has {len(shards)}: delete it")
    manifests = [ShardManifest._of(shard, entry, file) for shard, entry in zip(shards, entries, strict=True)]
    check_checksum(values, str(file))
    return manifests


def write_index(folder: Path, manifests: Sequence[ShardManifest]) -> None:
    """Write `index.json`. Every process that finds all shards finished writes the same one, so none has to wait."""
    entries = [
        {"embedding_id": m.embedding_id, "bytes": m.bytes, "sha256": m.sha256, "tables_sha256": m.tables_sha256}
        for m in manifests
    ]
    values = {"format": _INDEX_FORMAT, "format_version": FORMAT_VERSION, "shards": entries}
    write_text(folder / INDEX_NAME, json.dumps(with_checksum(values), indent=1) + "\n")


def _optional(values: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if isinstance(values, Mapping) and values.get(key) is None else _info.field(values, key, str, where)
