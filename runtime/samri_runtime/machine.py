"""The machine that this process runs on: processor, NVIDIA GPUs, versions, memory, and the user's folders."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samri import __version__

_INTEGER_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}  # As Linux calls them.
_STATUS = Path("/proc/self/status")
_CUDA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_LENGTH = 256


def machine() -> dict[str, Any]:
    """Versions and hardware in plain JSON values, without anything that identifies the machine or its user."""
    driver = nvidia_driver()
    return {
        "samri": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "nvidia": {"driver": driver.installed, "cuda": driver.cuda_version, "gpus": list(driver.gpus)},
    }


def processor() -> str:
    """The name of the processor; Python itself knows it on macOS and Windows only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def computes_int8_fast(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions for dot products of 8-bit integers.

    Without them integers are as slow as floats: on a CPU with AVX2 only, ViT-B's encoder took 17.4 s in int8 and 18.5 s
    in fp32. True where the system doesn't tell (Windows, macOS).
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return True
    flags = {
        flag
        for key, _, value in (line.partition(":") for line in lines)
        if key.strip() in ("flags", "Features")
        for flag in value.split()
    }
    return not flags or not flags.isdisjoint(_INTEGER_DOT_PRODUCTS)


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


@dataclass(frozen=True)
class NvidiaDriver:
    """The NVIDIA driver and its GPUs.

    Attributes:
        library: File name of the driver's library.
        installed: Whether the library was found.
        cuda_version: The newest CUDA version that the driver supports, such as `12.4`; None without a driver.
        gpus: Names of the GPUs that programs may use.
    """

    library: str
    installed: bool
    cuda_version: str | None
    gpus: tuple[str, ...]


def nvidia_driver() -> NvidiaDriver:
    """Query the driver through its own library, which needs no CUDA toolkit; no driver or no GPU is no error."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return NvidiaDriver(_CUDA_DRIVER, False, None, ())
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    # cuInit answers with an error code when there is no GPU; the count then stays 0.
    if driver.cuInit(0) == 0:
        driver.cuDeviceGetCount(ctypes.byref(count))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return NvidiaDriver(
        _CUDA_DRIVER, True, cuda_version, tuple(_gpu_name(driver, index) for index in range(count.value))
    )


def _gpu_name(driver: ctypes.CDLL, index: int) -> str:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_LENGTH)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_LENGTH, device)
    return name.value.decode(errors="replace")


def user_folder(kind: Literal["cache", "config"]) -> Path:
    """The user's folder for what can be computed again (`cache`) or for settings (`config`); it may not exist yet.

    `SAMRI_CACHE_DIR` or `SAMRI_CONFIG_DIR` where set, else a folder `samri` in the system's place for such files.

    Raises:
        RuntimeError: The home folder is unknown.
    """
    if override := os.environ.get(f"SAMRI_{kind.upper()}_DIR"):
        return Path(override).expanduser()
    if sys.platform == "win32":
        variable, default = ("LOCALAPPDATA", "Local") if kind == "cache" else ("APPDATA", "Roaming")
        return Path(os.environ.get(variable) or Path.home() / "AppData" / default) / "samri"
    if sys.platform == "darwin":
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support") / "samri"
    return Path(os.environ.get(f"XDG_{kind.upper()}_HOME") or Path.home() / f".{kind}") / "samri"
