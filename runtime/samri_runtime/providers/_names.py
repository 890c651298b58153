"""The names by which a user asks for a provider, and what ONNX Runtime calls them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal, get_args

from samri.errors import ProviderError
from samri_runtime.providers._wheels import Wheel, conflict_line, replace_line

Provider = Literal["auto", "cpu", "cuda", "tensorrt", "rocm", "migraphx", "openvino", "directml", "coreml"]
PROVIDERS: tuple[Provider, ...] = get_args(Provider)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
ROCM = "ROCMExecutionProvider"
MIGRAPHX = "MIGraphXExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
DIRECTML = "DmlExecutionProvider"
COREML = "CoreMLExecutionProvider"

# ONNX Runtime 1.23 dropped ROCm's own provider; MIGraphX is AMD's way on. Where a wheel has both, the name asked for
# comes first.
EXECUTION_PROVIDERS: dict[Provider, tuple[str, ...]] = {
    "cpu": (CPU,),
    "cuda": (CUDA,),
    "tensorrt": (TENSORRT,),
    "rocm": (ROCM, MIGRAPHX),
    "migraphx": (MIGRAPHX,),
    "openvino": (OPENVINO,),
    "directml": (DIRECTML,),
    "coreml": (COREML,),
}

# What `auto` tries, the best first. By name only: TensorRT, which spends minutes on an engine at the first run, and
# Core ML, which computes in half precision on most devices, so that masks differ.
AUTO_ORDER: tuple[Provider, ...] = ("cuda", "rocm", "migraphx", "directml", "openvino", "cpu")

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
NUMBERED: tuple[Provider, ...] = ("cuda", "tensorrt", "rocm", "migraphx")
"""Providers that take a GPU's number, `device_id`."""

_TORCH_DEVICES: dict[str, Provider] = {"mps": "coreml"}  # What PyTorch calls otherwise.
_SYSTEMS: dict[Provider, tuple[tuple[str, ...], str]] = {
    "cuda": (("linux", "win32"), "CUDA exists on Linux and Windows only"),
    "tensorrt": (("linux", "win32"), "TensorRT exists on Linux and Windows only"),
    "rocm": (("linux",), "ONNX Runtime's AMD wheels exist for Linux only"),
    "migraphx": (("linux",), "ONNX Runtime's AMD wheels exist for Linux only"),
    "openvino": (("linux", "win32"), "ONNX Runtime's OpenVINO wheels exist for Linux and Windows only"),
    "directml": (("win32",), "DirectML exists on Windows only"),
    "coreml": (("darwin",), "Core ML exists on macOS only"),
}


def check_provider(provider: str) -> Provider:
    """`provider` as a known name.

    Raises:
        ProviderError: There is no such name.
    """
    known = next((name for name in PROVIDERS if name == provider), None)
    if known is None:
        raise ProviderError(f"there is no provider {provider!r}: choose one of {', '.join(PROVIDERS)}")
    return known


def provider_of_device(device: str) -> tuple[Provider, dict[str, str]]:
    """Provider and its options for a PyTorch device or a provider's name: `cuda:1` is `cuda` with `device_id` 1.

    Raises:
        ProviderError: There is no such device.
    """
    name, colon, number = device.partition(":")
    provider = next((known for known in PROVIDERS if known == _TORCH_DEVICES.get(name, name)), None)
    if provider is None or (colon and not (number.isdecimal() and provider in NUMBERED)):
        known = ", ".join(dict.fromkeys((*PROVIDERS, *_TORCH_DEVICES, "cuda:N")))
        raise ProviderError(f"unknown device {device!r}: choose one of {known}")
    return provider, {"device_id": number} if colon else {}


def execution_provider(provider: Provider, offered: Sequence[str]) -> str | None:
    """ONNX Runtime's name for `provider` in a wheel that offers `offered`, or None when it has no such provider."""
    return next((name for name in EXECUTION_PROVIDERS[provider] if name in offered), None)


def provider_of(execution_provider: str) -> Provider:
    """The name by which a user asks for ONNX Runtime's `execution_provider`."""
    return next(name for name, theirs in EXECUTION_PROVIDERS.items() if theirs[0] == execution_provider)


def auto_candidates(offered: Sequence[str]) -> tuple[Provider, ...]:
    """What `auto` tries, in order, in a wheel that offers `offered`; the CPU comes last and is always there."""
    return tuple(name for name in AUTO_ORDER if name == "cpu" or EXECUTION_PROVIDERS[name][0] in offered)


def not_offered(
    provider: Provider, offered: Sequence[str], wheels: Sequence[Wheel], system: str = sys.platform
) -> ProviderError:
    """The error for a provider that the installed wheel doesn't have, with the way out.

    Args:
        provider: What was asked for; not `auto`.
        offered: ONNX Runtime's names of the providers that the wheel has.
        wheels: What is installed.
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
