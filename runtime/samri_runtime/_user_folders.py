"""Where SAMRI keeps files of its own on this machine: caches and settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal


def user_folder(kind: Literal["cache", "config"]) -> Path:
    """The user's folder for what can be computed again (`cache`) or for settings (`config`); it may not exist yet.

    `SAMRI_CACHE_DIR` or `SAMRI_CONFIG_DIR` where set, else a folder `samri` in the system's place for such files.

    Raises:
        RuntimeError: The home folder is unknown.
    """
    if chosen := os.environ.get(f"SAMRI_{kind.upper()}_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        variable, default = ("LOCALAPPDATA", "Local") if kind == "cache" else ("APPDATA", "Roaming")
        return Path(os.environ.get(variable) or Path.home() / "AppData" / default) / "samri"
    if sys.platform == "darwin":
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support") / "samri"
    return Path(os.environ.get(f"XDG_{kind.upper()}_HOME") or Path.home() / f".{kind}") / "samri"
