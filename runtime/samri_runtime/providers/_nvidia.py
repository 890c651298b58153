"""The NVIDIA driver and its GPUs, asked through the driver's own library: no CUDA toolkit is needed for that."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_LENGTH = 256


@dataclass(frozen=True)
class NvidiaDriver:
    """What the driver says.

    Attributes:
        library: File name of the driver's library.
        installed: The library was found.
        cuda_version: The newest CUDA that the driver can serve, such as `12.4`; None without a driver.
        gpus: Names of the GPUs that programs may use.
    """

    library: str
    installed: bool
    cuda_version: str | None
    gpus: tuple[str, ...]


def nvidia_driver() -> NvidiaDriver:
    """Ask the driver; without one, or without a GPU, the answer is empty, never an error."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return NvidiaDriver(_LIBRARY, False, None, ())
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    # cuInit answers with an error code when there is no GPU; the count then stays 0.
    if driver.cuInit(0) == 0:
        driver.cuDeviceGetCount(ctypes.byref(count))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return NvidiaDriver(_LIBRARY, True, cuda_version, tuple(_name(driver, index) for index in range(count.value)))


def _name(driver: ctypes.CDLL, index: int) -> str:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_LENGTH)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_LENGTH, device)
    return name.value.decode(errors="replace")
