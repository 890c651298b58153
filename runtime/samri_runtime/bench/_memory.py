"""How much memory this process takes and has taken."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss() -> int | None:
    """The most memory that this process has had resident, in bytes; None where the system doesn't tell."""
    if _STATUS.is_file():
        # Not getrusage, which on Linux counts what the parent had when it started this process.
        return _status("VmHWM")
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def current_rss() -> int | None:
    """The memory that this process has resident now, in bytes; None where the system doesn't tell."""
    return _status("VmRSS") if _STATUS.is_file() else None


def _status(key: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None
