"""The installed ONNX Runtime wheels: which ones, whether they are in conflict, what they lack, and their plug-ins.

`onnxruntime`, `onnxruntime-gpu`, `onnxruntime-openvino` and the like all install the import package `onnxruntime` over
each other: the last one wins, and removing one leaves the others without files. pip doesn't notice.

A plug-in wheel (ONNX Runtime 1.22 and newer) holds a provider that is loaded into the runtime of another wheel. It is
missing from `get_available_providers()`; it is registered once per process, and then offers devices.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samri.errors import MissingDependencyError, ProviderError
from samri.process import TELEMETRY_VARIABLES, forbid_telemetry
from samri_runtime.providers._names import EXECUTION_PROVIDERS, OPENVINO, PROVIDERS, Provider
from samri_runtime.providers._ort_log import one_line, ort_errors

# Distributions called onnxruntime-* that hold no runtime of their own, for those whose file list is lost.
_COMPANIONS = re.compile(r"onnxruntime-(ep|extensions|genai|tools|easy|transformers)\b")
_FAMILY = re.compile(r"onnxruntime|ort[-_.]", re.IGNORECASE)
_PLUGIN = re.compile(r"onnxruntime-ep-")
_EXTRA_OF_WHEEL = {
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "onnxruntime-openvino": "openvino",
    "onnxruntime-migraphx": "rocm",
    "onnxruntime-rocm": "rocm",
    "onnxruntime-directml": "directml",
}
EXTRAS: dict[Provider, str] = {
    "auto": "cpu",
    "cpu": "cpu",
    "cuda": "gpu",
    "tensorrt": "gpu",
    "rocm": "rocm",
    "migraphx": "rocm",
    "openvino": "openvino",
    "directml": "directml",
    "coreml": "cpu",
}
_SYSTEMS: dict[Provider, tuple[tuple[str, ...], str]] = {
    "cuda": (("linux", "win32"), "CUDA exists on Linux and Windows only"),
    "tensorrt": (("linux", "win32"), "TensorRT exists on Linux and Windows only"),
    "rocm": (("linux",), "ONNX Runtime's AMD wheels exist for Linux only"),
    "migraphx": (("linux",), "ONNX Runtime's AMD wheels exist for Linux only"),
    "openvino": (("linux", "win32"), "ONNX Runtime's OpenVINO wheels exist for Linux and Windows only"),
    "directml": (("win32",), "DirectML exists on Windows only"),
    "coreml": (("darwin",), "Core ML exists on macOS only"),
}
# Wheel -> module with get_library_path() and ONNX Runtime's name of the provider it holds.
PLUGINS = {"onnxruntime-ep-openvino": ("onnxruntime_ep_openvino", OPENVINO)}
_registering = threading.Lock()
_registered: set[str] = set()


@dataclass(frozen=True)
class Wheel:
    """An installed distribution of the ONNX Runtime family.

    Attributes:
        name: Normalized distribution name, such as `onnxruntime-gpu`.
        version: Its version.
        holds_runtime: Whether it installs the import package `onnxruntime`, which only one wheel can.
        shadowed: Whether another runtime in an earlier folder of the path is imported instead.
    """

    name: str
    version: str
    holds_runtime: bool
    shadowed: bool = False

    @property
    def is_plugin(self) -> bool:
        """Whether it holds a provider for another wheel's runtime, such as `onnxruntime-ep-openvino`."""
        return _PLUGIN.match(self.name) is not None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@functools.cache
def installed_wheels() -> tuple[Wheel, ...]:
    """The ONNX Runtime wheels found on `sys.path`, by name; read once."""
    return wheels_on(sys.path)


def wheels_on(path: Sequence[str]) -> tuple[Wheel, ...]:
    """The ONNX Runtime wheels found on `path`, by name."""
    wheels: dict[str, Wheel] = {}
    imported: Path | None = None
    for folder in _metadata_folders(path):
        distribution = importlib.metadata.Distribution.at(folder)
        if "Name" not in distribution.metadata:  # The remains of an interrupted pip.
            continue
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name.startswith(("onnxruntime", "ort-")) and name not in wheels:
            holds_runtime = _holds_runtime(distribution, name)
            if holds_runtime:
                imported = imported or folder.parent
            shadowed = holds_runtime and imported != folder.parent
            wheels[name] = Wheel(name, distribution.version, holds_runtime, shadowed)
    return tuple(wheels[name] for name in sorted(wheels))


def _metadata_folders(path: Sequence[str]) -> Iterator[Path]:
    """Metadata folders of packages whose names begin as those of the family do, in order of `path`.

    By the folder names alone: `importlib.metadata.distributions` parses the metadata of every installed package, which
    takes a fifth of a second where many are installed.
    """
    for place in path:
        try:
            found = sorted(Path(place).iterdir())
        except OSError:  # Python allows missing folders in its path, and zip files.
            continue
        for folder in found:
            if _FAMILY.match(folder.name) and folder.suffix.lower() in (".dist-info", ".egg-info"):
                yield folder


def conflicting(wheels: Sequence[Wheel]) -> tuple[Wheel, ...]:
    """The wheels that overwrite each other: none, or at least two."""
    runtimes = tuple(wheel for wheel in wheels if wheel.holds_runtime and not wheel.shadowed)
    return runtimes if len(runtimes) > 1 else ()


def conflict_line(wheels: Sequence[Wheel], extra: str | None = None) -> str | None:
    """One line about wheels that overwrite each other, with the remedy; or None.

    Args:
        wheels: The installed ones.
        extra: The extra of samri to install instead; by default that of the first wheel that isn't the plain CPU one.
    """
    clash = conflicting(wheels)
    if not clash:
        return None
    if extra is None:
        extra = next(
            (_EXTRA_OF_WHEEL[wheel.name] for wheel in clash if _EXTRA_OF_WHEEL.get(wheel.name, "cpu") != "cpu"), "cpu"
        )
    names = " and ".join(str(wheel) for wheel in clash)
    return f"{names} are installed over each other: {replace_line(clash, extra)}"


def replace_line(wheels: Sequence[Wheel], extra: str) -> str:
    """The pip commands that replace the runtimes and plug-ins in `wheels` by the wheel of `samri[extra]`."""
    install = f"pip install 'samri[{extra}]'"
    names = " ".join(wheel.name for wheel in wheels if wheel.holds_runtime or wheel.is_plugin)
    return f"run pip uninstall -y {names}, then {install}" if names else f"run {install}"


def not_offered(
    provider: Provider, offered: Sequence[str], wheels: Sequence[Wheel], system: str = sys.platform
) -> ProviderError:
    """The error for a provider that the installed wheel doesn't have, with the remedy.

    Args:
        provider: The requested one; not `auto`.
        offered: ONNX Runtime's names of the providers that the wheel has.
        wheels: The installed ones.
        system: `sys.platform`.
    """
    systems, only = _SYSTEMS.get(provider, ((system,), ""))
    if system not in systems:
        return ProviderError(f"{provider} can't be used: {only}; use --provider auto, or name another")
    conflict = conflict_line(wheels, EXTRAS[provider])
    if conflict:
        return ProviderError(f"{provider} can't be used: {conflict}")
    runtimes = (
        ", ".join(str(wheel) for wheel in wheels if wheel.holds_runtime and not wheel.shadowed)
        or "the installed ONNX Runtime"
    )
    has = ", ".join(name for name in PROVIDERS if name != "auto" and EXECUTION_PROVIDERS[name][0] in offered)
    mend = replace_line(wheels, EXTRAS[provider])
    return ProviderError(f"{provider} can't be used: {runtimes} has no such provider (only {has}): {mend}")


def plugin_providers(wheels: Sequence[Wheel]) -> tuple[str, ...]:
    """ONNX Runtime's names of the providers that installed plug-in wheels hold."""
    return tuple(PLUGINS[wheel.name][1] for wheel in wheels if wheel.name in PLUGINS)


def plugin_device(onnxruntime: Any, provider: Provider, wheels: Sequence[Wheel], options: Mapping[str, str]) -> Any:
    """The device (`OrtEpDevice`) on which a plug-in runs `provider`, or None without such a plug-in.

    Args:
        onnxruntime: The module.
        provider: The requested one.
        wheels: The installed ones.
        options: The user's provider options; OpenVINO's `device_type` chooses among its devices.

    Raises:
        ProviderError: A plug-in is installed and doesn't load, or finds no device.
    """
    if not hasattr(onnxruntime, "get_ep_devices"):
        return None
    names = EXECUTION_PROVIDERS[provider]
    wheel = next((wheel for wheel in wheels if wheel.name in PLUGINS and PLUGINS[wheel.name][1] in names), None)
    if wheel is not None:
        _register(onnxruntime, provider, wheel)
    # Includes what a wheel registers by itself, as some builds of onnxruntime-gpu do with CUDA.
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name in names]
    if provider == "openvino":
        kind = options.get("device_type", "CPU")
        devices = [device for device in devices if device.ep_metadata.get("ov_device", kind) == kind]
    if wheel is not None and not devices:
        raise ProviderError(
            f"{provider} can't be used: {wheel} finds no device for it in this machine; for the wheel with "
            f"{provider} built in, {replace_line(wheels, EXTRAS[provider])}"
        )
    return devices[0] if devices else None


def load_onnxruntime() -> Any:
    """The module `onnxruntime`, with its telemetry off.

    Raises:
        MissingDependencyError: It isn't installed, or what is installed can't be imported.
    """
    forbid_telemetry()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise MissingDependencyError(_damaged(str(error))) from error
        raise MissingDependencyError(
            "ONNX Runtime isn't installed: run pip install 'samri[cpu]', or pip install 'samri[gpu]' for NVIDIA GPUs"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(_damaged(str(error))) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise MissingDependencyError(_damaged("its files are gone, as when one of two wheels was uninstalled"))
    if os.environ.get(TELEMETRY_VARIABLES[0]) == "1":
        onnxruntime.disable_telemetry_events()  # On Windows, and where a host had imported onnxruntime before.
    return onnxruntime


def _damaged(reason: str) -> str:
    wheels = installed_wheels()
    mend = conflict_line(wheels) or replace_line(wheels, _extra_of(wheels))
    return f"ONNX Runtime can't be imported ({' '.join(reason.split())}): {mend}"


def _extra_of(wheels: Sequence[Wheel]) -> str:
    return next((_EXTRA_OF_WHEEL[wheel.name] for wheel in wheels if wheel.name in _EXTRA_OF_WHEEL), "cpu")


def _holds_runtime(distribution: importlib.metadata.Distribution, name: str) -> bool:
    # Not `distribution.files`, which from Python 3.12 on leaves out files that another wheel's removal took away.
    record = distribution.read_text("RECORD")
    if record is None:
        return _COMPANIONS.match(name) is None
    return any(line.startswith("onnxruntime/__init__.py,") for line in record.splitlines())


def _register(onnxruntime: Any, provider: Provider, wheel: Wheel) -> None:
    module, name = PLUGINS[wheel.name]
    with _registering:
        # A host may have registered it under a name of its own; a second copy would offer the same devices twice.
        if name in _registered or any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            return
        failures: tuple[type[Exception], ...] = (ImportError, OSError, *ort_errors(onnxruntime))
        try:
            library = importlib.import_module(module).get_library_path()
            onnxruntime.register_execution_provider_library(name, library)
        except failures as error:
            raise ProviderError(f"{provider} can't be used: {wheel} doesn't load: {one_line(str(error))}") from error
        _registered.add(name)
