"""What PyInstaller has to know of SAMRI; it finds this by the entry point `pyinstaller40`."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Folders with hooks."""
    return [str(Path(__file__).parent)]
