"""ONNX Runtime's providers: their names, which ones work here, and sessions that run on the requested one."""

from __future__ import annotations

from samri_runtime.providers._names import NUMBERED, PROVIDERS, Provider, provider_of_device
from samri_runtime.providers._opening import is_cpu, open_session
from samri_runtime.providers._options import parse_provider_options
from samri_runtime.providers._session import BoundSession, Session, Tensor, copy_to_device
from samri_runtime.providers._wheels import load_onnxruntime

__all__ = [
    "NUMBERED",
    "PROVIDERS",
    "BoundSession",
    "Provider",
    "Session",
    "Tensor",
    "copy_to_device",
    "is_cpu",
    "load_onnxruntime",
    "open_session",
    "parse_provider_options",
    "provider_of_device",
]
