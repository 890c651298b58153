"""The names of providers here, and the names that ONNX Runtime has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from samri.errors import ProviderError

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

# ONNX Runtime 1.23 dropped the provider for ROCm; AMD's successor is MIGraphX. Where a wheel has both, the
# requested one comes first.
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

# What `auto` tries, the fastest first. Not TensorRT, which compiles for minutes before the first run, nor Core ML,
# which computes in half precision on most devices, so that masks differ.
AUTO_ORDER: tuple[Provider, ...] = ("cuda", "rocm", "migraphx", "directml", "openvino", "cpu")

NUMBERED: tuple[Provider, ...] = ("cuda", "tensorrt", "rocm", "migraphx")
"""Providers that take the number of a GPU, `device_id`."""

_TORCH_DEVICES: dict[str, Provider] = {"mps": "coreml"}  # PyTorch's names that differ.


def check_provider(provider: str) -> Provider:
    """`provider`, if it is the name of one.

    Raises:
        ProviderError: It isn't.
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
    """ONNX Runtime's name for `provider` in a wheel that has the providers `offered`, or None."""
    return next((name for name in EXECUTION_PROVIDERS[provider] if name in offered), None)


def provider_of(execution_provider: str) -> Provider:
    """The name here of ONNX Runtime's `execution_provider`."""
    return next(name for name, theirs in EXECUTION_PROVIDERS.items() if theirs[0] == execution_provider)


def auto_candidates(offered: Sequence[str]) -> tuple[Provider, ...]:
    """What `auto` tries, in order, in a wheel that has the providers `offered`; the CPU comes last, always."""
    return tuple(name for name in AUTO_ORDER if name == "cpu" or EXECUTION_PROVIDERS[name][0] in offered)
