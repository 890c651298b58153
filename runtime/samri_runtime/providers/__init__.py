"""ONNX Runtime's providers: their names, what works here, and sessions that keep their promise."""

from __future__ import annotations

from samri_runtime.providers._binding import BoundSession, put
from samri_runtime.providers._names import NUMBERED, PROVIDERS, Provider, provider_of_device
from samri_runtime.providers._options import parse_provider_options, user_cache_folder
from samri_runtime.providers._session import Session, Tensor, is_cpu, open_session
from samri_runtime.providers._wheels import load_onnxruntime

__all__ = [
    "NUMBERED",
    "PROVIDERS",
    "BoundSession",
    "Provider",
    "Session",
    "Tensor",
    "is_cpu",
    "load_onnxruntime",
    "open_session",
    "parse_provider_options",
    "provider_of_device",
    "put",
    "user_cache_folder",
]
