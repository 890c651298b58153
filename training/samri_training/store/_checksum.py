"""A checksum within a store's JSON files, over everything else that they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from samri.errors import InputError
from samri_training.store._info import field

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
