"""What a process needs before anything that matters is imported: telemetry off, its cores, and signals that unwind.

Each of our packages that may lead to onnxruntime forbids its telemetry when it is itself imported; so does every
command by that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import FrameType

# The released name, and that of some builds in between.
TELEMETRY_VARIABLES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# systemd and terminals send two signals at once; the second must not interrupt what the first one has begun to clean.
_ONE_STOP_S = 1.0


def forbid_telemetry() -> None:
    """Switch ONNX Runtime's telemetry off; call before anything that may import onnxruntime, such as onnxsim or MONAI.

    From 1.29 on, ONNX Runtime's own wheels for Linux and macOS send events to Microsoft over HTTPS, and keep an id of
    the device in the user's cache; on Windows they go to the system's event tracing. Only an environment variable that
    is set before the import keeps the id and the first event from being made. A user's own value of it stands.
    """
    for variable in TELEMETRY_VARIABLES:
        os.environ.setdefault(variable, "1")


def unwind_on_signals() -> Callable[[], None]:
    """Turn SIGTERM, which SLURM and container hosts send, and SIGHUP, of a closed terminal, into KeyboardInterrupt.

    So the stack unwinds as after Ctrl-C, and nothing half-written stays. A signal that this process was started to
    ignore, as SIGHUP under `nohup`, stays ignored.

    Returns:
        What puts the earlier handlers back. Off the main thread, which alone may set handlers, both do nothing.
    """
    stopped = -_ONE_STOP_S

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        now = time.monotonic()
        if now - stopped >= _ONE_STOP_S:
            stopped = now
            raise KeyboardInterrupt

    before: list[tuple[signal.Signals, object]] = []
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        if number is None or signal.getsignal(number) == signal.SIG_IGN:
            continue
        try:
            before.append((number, signal.signal(number, stop)))
        except ValueError:
            break

    def restore() -> None:
        for number, handler in before:
            # None: it was not set from Python, and can't be put back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    return restore


def usable_cores(cgroup: Path = _CGROUP, own_groups: Path = _OWN_GROUPS) -> int:
    """Cores that this process may use: the fewest of the machine's, its affinity's and its container's quota.

    Args:
        cgroup: Where control groups are mounted.
        own_groups: The file that names the groups of this process.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *_quotas(cgroup, own_groups)]))


def thread_limit() -> int | None:
    """Threads that a library of numerics is given, where by itself it would start one for each of the machine's cores.

    `OMP_NUM_THREADS`, where it is set, but no more than the usable cores; else these, where they are fewer than the
    machine's; else None: the library's own choice is right.
    """
    usable = usable_cores()
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if setting.isdecimal() and len(setting) < 9 and int(setting) > 0:
        return min(int(setting), usable)
    return usable if usable < (os.cpu_count() or usable) else None


def _quotas(cgroup: Path, own_groups: Path) -> Iterator[int]:
    """Processors, rounded up, that each quota on the way from the root of the groups to this process allows.

    Version 2 has one tree and `cpu.max`; version 1 a tree for its `cpu` controller and two files. Within a container
    the mounted root usually is the container's own group, whatever path the process is told.
    """
    for tree, path in _groups(cgroup, own_groups):
        parts = [part for part in PurePosixPath(path).parts if part != "/"]
        if ".." in parts:  # A group outside this namespace: only the root can be seen.
            parts = []
        for depth in range(len(parts) + 1):
            quota = _quota(tree.joinpath(*parts[:depth]))
            if quota is not None:
                yield quota


def _groups(cgroup: Path, own_groups: Path) -> Iterator[tuple[Path, str]]:
    """Trees that may limit processors, each with this process's path in it."""
    paths = {"": "/", "cpu": "/"}
    for line in _text(own_groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in {"", "cpu"} & set(controllers.split(",")):
            paths[controller] = path
    yield cgroup, paths[""]
    yield cgroup / "cpu", paths["cpu"]


def _quota(group: Path) -> int | None:
    limit, _, period = _text(group / "cpu.max").partition(" ")
    if not limit:
        limit, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    numbers = [int(text) if text.isdecimal() and len(text) < 19 else 0 for text in (limit, period)]
    # "max", or -1: no quota.
    return -(-numbers[0] // numbers[1]) if all(numbers) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return ""
