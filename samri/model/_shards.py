"""A model in several files, as transformers saves it: an index says where each tensor lies; joined again here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from samri.errors import CheckpointError
from samri.model._pickle_globals import plain_name
from samri.opening import JSON_LIMIT, read_regular


class _Content(Protocol):
    """The content of one file, as far as it is needed here."""

    @property
    def values(self) -> Any: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


SUFFIX = ".index.json"

_MOST = 1000  # transformers numbers parts in five digits, but no SAM fills more than a handful.
_AGAIN = "download the index and all its parts again"


def index_of(path: Path) -> Path | None:
    """The index that `path` is, or the only one in the folder that it is; None where it is neither.

    Raises:
        CheckpointError: A folder without an index, or with several.
    """
    if path.name.endswith(SUFFIX) and path.is_file():
        return path
    if not os.path.isdir(path):  # noqa: PTH112 - no error for a name that is too long: opening it reports that.
        return None
    indexes = sorted(path.glob(f"*{SUFFIX}"))
    if len(indexes) == 1:
        return indexes[0]
    named = f"holds {indexes[0].name} and {indexes[1].name}" if indexes else f"is a folder, and no *{SUFFIX} lies in it"
    raise CheckpointError(f"{path} {named}: give the file with the weights")


def join(index: Path, read: Callable[[Path], _Content]) -> tuple[dict[str, Any], int, str]:
    """All tensors of an index's files, the bytes of these, and one SHA-256 for all.

    That is the SHA-256 of what `sha256sum` prints for the index and then for its files, in the order of their names.

    Args:
        index: A `*.index.json`.
        read: Reads one of the files.

    Raises:
        CheckpointError: The index is damaged, a file is missing or elsewhere, or one holds other tensors than it says.
    """
    text = read_regular(index, error=CheckpointError, limit=JSON_LIMIT)
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged (not JSON): {_AGAIN}") from error
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} doesn't say where its weights are (weight_map): {_AGAIN}")
    files = sorted(set(places.values()))
    strange = next((file for file in files if Path(file).name != file or file.endswith(SUFFIX) or "\\" in file), None)
    if strange is not None or len(files) > _MOST:
        what = f"{len(files)} files" if strange is None else f"{plain_name(strange)}, no file beside it"
        raise CheckpointError(f"{index} names {what}: {_AGAIN}")
    tensors: dict[str, Any] = {}
    total, lines = 0, [f"{hashlib.sha256(text).hexdigest()}  {index.name}\n"]
    for file in files:
        content = read(index.parent / file)
        expected = {name for name, place in places.items() if place == file}
        if not isinstance(content.values, dict) or set(content.values) != expected:
            raise CheckpointError(f"{index.parent / file} doesn't hold the tensors that {index.name} lists: {_AGAIN}")
        tensors |= content.values
        total += content.bytes
        lines.append(f"{content.sha256}  {file}\n")
    return tensors, total, hashlib.sha256("".join(lines).encode()).hexdigest()
