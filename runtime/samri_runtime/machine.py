"""The machine that this process runs on: processor, NVIDIA GPUs, versions, and the memory that the process takes."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from samri import __version__
from samri_runtime.providers._nvidia import nvidia_driver

_INTEGER_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}  # As Linux calls them.
_STATUS = Path("/proc/self/status")


def machine() -> dict[str, Any]:
    """Plain JSON values; nothing that tells one machine or user from another of the same kind."""
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
    """The processor's name; Python knows it on macOS and Windows only."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def computes_int8_fast(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions for dot products of 8-bit integers.

    Without them integers are as slow as floats: on a CPU with AVX2 alone ViT-B's int8 encoder took 17.4 s where fp32
    took 18.5. Where the system doesn't tell (Windows, macOS) they are taken to be there.
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
