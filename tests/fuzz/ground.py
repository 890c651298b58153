"""The valid things that all targets start from, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ground:
    """What conftest's fixtures made; nothing writes into it."""

    bundle: Path
    checkpoint: Path
