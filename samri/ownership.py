"""Which files SAMRI made itself: those it may replace or remove, and no others.

A result is vouched for by a JSON file that lists the files made with it, by name and SHA-256, and holds the SHA-256 of
its own text. What isn't listed there, or was edited since, belongs to a person.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from samri.errors import OutputError
from samri.hashing import file_sha256
from samri.opening import read_regular

_OPEN = "0" * 64  # Where the text's own digest comes in.
_LARGEST_SEAL = 64_000_000

# What desktops put into every folder that a person looks at.
_OF_DESKTOPS = {".DS_Store", "Thumbs.db", "desktop.ini"}


def sealed_json(values: Mapping[str, Any], folder: Path, names: Iterable[str]) -> str:
    """The text of a JSON file that vouches for files of `folder`.

    It holds `values`; `files`, which gives the SHA-256 of each of `names`; and `sha256`, that of the whole text with 64
    zeros in place of this value.
    """
    files = {name: file_sha256(folder / name) for name in names}
    text = json.dumps({**values, "files": files, "sha256": _OPEN}, indent=2, allow_nan=False) + "\n"
    before, _, after = text.rpartition(_OPEN)
    return before + hashlib.sha256(text.encode()).hexdigest() + after


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `sealed_json` wrote; None where there is no such file, or it isn't as it was written."""
    try:
        data = read_regular(path, error=OutputError, limit=_LARGEST_SEAL, follow=False)
        values = json.loads(data)
    except (OutputError, ValueError, RecursionError):
        return None
    if not (isinstance(values, dict) and isinstance(values.get("files"), dict)):
        return None
    digest = values.get("sha256")
    if not isinstance(digest, str) or len(digest) != len(_OPEN):
        return None
    before, _, after = data.rpartition(digest.encode())
    opened = before + _OPEN.encode() + after
    return values if hashlib.sha256(opened).hexdigest() == digest else None


def unchanged(folder: Path, files: Mapping[str, Any]) -> set[str]:
    """The names in `files` (name to SHA-256) whose file in `folder` has that SHA-256."""
    return {name for name, digest in files.items() if _has(folder / name, digest)}


def refuse_foreign_files(folder: Path, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise if a file of `names` is in `folder` and isn't among `known`.

    Raises:
        OutputError: It names the file.
    """
    for name in names:
        if name not in known and os.path.lexists(folder / name):
            raise OutputError(
                f"{folder / name} already exists: name another --output, or pass --overwrite to replace it"
            )


def refuse_foreign_content(folder: Path, listed: Iterable[str], maker: str) -> None:
    """Raise if anything in `folder` isn't `listed`, so that replacing the folder would remove it.

    Args:
        folder: What is to be replaced.
        listed: Paths of all files that `maker` wrote, relative to `folder`, with forward slashes.
        maker: The command that made the folder.

    Raises:
        OutputError: It names a file or folder that isn't listed.
    """
    files = set(listed)
    folders = {parent.as_posix() for file in files for parent in Path(file).parents}
    for place, below, here in os.walk(folder):
        relative = Path(place).relative_to(folder)
        entries = [(name, folders) for name in below] + [(name, files) for name in here if name not in _OF_DESKTOPS]
        for name, known in entries:
            if (relative / name).as_posix() not in known:
                raise OutputError(
                    f"{folder} also holds {(relative / name).as_posix()}, which {maker} didn't make and "
                    "--overwrite would remove: move it, or name another output"
                )


def _has(path: Path, digest: Any) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and file_sha256(path) == digest
    except OSError:
        return False
