"""What a process needs before anything that matters is imported: telemetry off, and the cores that it may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The released name, and that of some builds in between.
TELEMETRY_VARIABLES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")

_CGROUP = Path("/sys/fs/cgroup")


def forbid_telemetry() -> None:
    """Switch ONNX Runtime's telemetry off; call before anything that may import onnxruntime, such as onnxsim.

    From 1.29 on, ONNX Runtime's own wheels for Linux and macOS send events to Microsoft over HTTPS, and keep an id of
    the device in the user's cache; on Windows they go to the system's event tracing. Only an environment variable that
    is set before the import keeps the id and the first event from being made. A user's own value of it stands.
    """
    for variable in TELEMETRY_VARIABLES:
        os.environ.setdefault(variable, "1")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: the fewest of the machine's, its affinity's and its container's quota."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cores if quota is None else max(1, min(cores, quota))


def _quota(cgroup: Path) -> int | None:
    """Processors that a cgroup's quota allows, rounded up; version 2's `cpu.max`, else version 1's two files."""
    try:
        limit, _, period = (cgroup / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    if not (limit.isdecimal() and period.isdecimal()) or int(period) == 0 or int(limit) == 0:
        return None  # "max", or -1: no quota.
    return -(-int(limit) // int(period))
