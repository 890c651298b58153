"""What is made once in a session, however many workers it has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object], wait_s: float = 300) -> Path:
    """A file or folder `name` that `make` writes: the first worker that asks calls it, and the others wait for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + wait_s
        while not (folder / "done").exists():
            if time.monotonic() > until:
                raise TimeoutError(f"another worker did not make {name} in {wait_s:.0f} s") from None
            time.sleep(0.05)
    else:
        make(folder / name)
        (folder / "done").touch()
    return folder / name
