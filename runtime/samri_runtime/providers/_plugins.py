"""Providers that come as plug-in wheels (ONNX Runtime 1.22 and newer), loaded into the runtime of another wheel.

A plug-in isn't among `get_available_providers()`. It is registered once a process, and then offers devices.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from samri.errors import ProviderError
from samri_runtime.providers._inference import ort_errors
from samri_runtime.providers._names import EXECUTION_PROVIDERS, EXTRAS, OPENVINO, Provider
from samri_runtime.providers._ort_log import one_line
from samri_runtime.providers._wheels import Wheel, replace_line

# Wheel -> module with get_library_path() and ONNX Runtime's name of the provider it holds.
PLUGINS = {"onnxruntime-ep-openvino": ("onnxruntime_ep_openvino", OPENVINO)}
_registering = threading.Lock()
_registered: set[str] = set()


def plugin_providers(wheels: Sequence[Wheel]) -> tuple[str, ...]:
    """ONNX Runtime's names of the providers that installed plug-in wheels hold."""
    return tuple(PLUGINS[wheel.name][1] for wheel in wheels if wheel.name in PLUGINS)


def plugin_device(onnxruntime: Any, provider: Provider, wheels: Sequence[Wheel], options: Mapping[str, str]) -> Any:
    """The device (`OrtEpDevice`) on which a plug-in runs `provider`, or None without such a plug-in.

    Args:
        onnxruntime: The module.
        provider: What was asked for.
        wheels: What is installed.
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
    # Also what a wheel registers by itself, as some builds of onnxruntime-gpu do with CUDA.
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
