"""ONNX Runtime as it behaves with hardware that isn't here: what it lists, logs, raises and reports, as recorded.

The log lines are word for word those of onnxruntime-gpu 1.31.1 and onnxruntime-openvino 1.24.1 on Linux.
"""

from __future__ import annotations

import os
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
ROCM = "ROCMExecutionProvider"
MIGRAPHX = "MIGraphXExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
DIRECTML = "DmlExecutionProvider"
COREML = "CoreMLExecutionProvider"

# What get_available_providers() gives for each wheel.
OFFERED = {
    "onnxruntime": ["AzureExecutionProvider", CPU],
    "onnxruntime on macOS": [COREML, "AzureExecutionProvider", CPU],
    "onnxruntime-gpu": [TENSORRT, CUDA, CPU],
    "onnxruntime-rocm 1.22": [MIGRAPHX, ROCM, CPU],
    "onnxruntime-migraphx": [MIGRAPHX, CPU],
    "onnxruntime-openvino": [OPENVINO, CPU],
    "onnxruntime-directml": [DIRECTML, CPU],
}

CUBLAS_MISSING = (
    "\x1b[1;31m2026-11-23 06:05:29.427265491 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/env/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object "
    "file: No such file or directory\n\x1b[m\n"
    "\x1b[0;93m2026-11-23 06:05:29.427356967 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295 "
    "CreateExecutionProviderFactoryInstance] Failed to create CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*. "
    "Please install all dependencies as mentioned in the GPU requirements page "
    "(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#requirements), make sure they're in "
    "the PATH, and that your GPU is supported.\x1b[m\n"
)
NVINFER_MISSING = (
    "\x1b[1;31m2026-11-23 06:11:26.763503140 [E:onnxruntime:Default, provider_bridge_ort.cc:2430 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/env/onnxruntime/capi/libonnxruntime_providers_tensorrt.so with error: libnvinfer.so.10: cannot open shared "
    "object file: No such file or directory\n\x1b[m\n"
)
NVINFER_RAISED = (
    "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void "
    "onnxruntime::python::RegisterTensorRTPluginsAsCustomOps(PySessionOptions&, const onnxruntime::ProviderOptions&) "
    "Please install TensorRT libraries as mentioned in the GPU requirements page, make sure they're in the PATH or "
    "LD_LIBRARY_PATH, and that your GPU is supported.\n"
)
OPENVINO_NO_GPU = (
    "\x1b[1;31m2026-11-23 06:05:30.167576523 [E:onnxruntime:Default, provider_bridge_ort.cc:2310 Create] "
    "/onnxruntime/onnxruntime/core/providers/openvino/openvino_provider_factory.cc:141 std::string "
    "onnxruntime::openvino_ep::ParseDeviceType(std::shared_ptr<OVCore>, const onnxruntime::ProviderOptions&) [ERROR] "
    "[OpenVINO] Device GPU is not available\n\x1b[m\n"
    "\x1b[0;93m2026-11-23 06:05:30.167590313 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1066 "
    "CreateExecutionProviderFactoryInstance] Failed to create OpenVINOExecutionProvider. Please refer "
    "https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html#requirements to ensure all "
    "dependencies are met.\x1b[m\n"
)
OPENVINO_BAD_JSON = (
    "\x1b[1;31m2026-11-23 06:05:30.177643987 [E:onnxruntime:Default, provider_bridge_ort.cc:2310 Create] "
    "/onnxruntime/onnxruntime/core/providers/openvino/openvino_provider_factory.cc:306 "
    "onnxruntime::openvino_ep::ParseProviderInfo(const onnxruntime::ProviderOptions&, const "
    "onnxruntime::ConfigOptions*, ProviderInfo&)::<lambda(const std::string&)> JSON parsing error: "
    "[json.exception.parse_error.101] parse error at line 1, column 1: syntax error while parsing value - invalid "
    "literal; last read: '/'\n\x1b[m\n"
)


@dataclass
class RecordedRuntime:
    """Stands for the module `onnxruntime` with an accelerator's wheel; sessions compute on the real one's CPU.

    Attributes:
        offered: What the wheel lists.
        loading: The providers that really load; the others are left out of a session, as ONNX Runtime does.
        log: What it writes to stderr while a session that wants another provider is made.
        raised: The exception that it raises then, if any.
        wrong: Every output is doubled, as a broken driver might.
        asked: The providers and options of each session that was made.
    """

    offered: Sequence[str]
    loading: Sequence[str]
    log: str = ""
    raised: Exception | None = None
    wrong: bool = False
    version: str = "1.31.1"
    asked: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.__version__ = self.version
        self.capi = onnxruntime.capi
        self.SessionOptions = onnxruntime.SessionOptions

    def get_available_providers(self) -> list[str]:
        return list(self.offered)

    def get_device(self) -> str:
        return "GPU"

    def get_build_info(self) -> str:
        return "recorded"

    def InferenceSession(self, graph: Any, options: Any, *, providers: list[Any], enable_fallback: int) -> Any:  # noqa: N802
        assert enable_fallback == 0
        self.asked.append(providers)
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        if any(name not in (*self.loading, CPU) for name in names):
            os.write(2, self.log.encode())
            if self.raised is not None:
                raise self.raised
        real = onnxruntime.InferenceSession(graph, options, providers=[CPU])
        return _RecordedSession(real, [name for name in names if name in (*self.loading, CPU)], self.wrong)


class _RecordedSession:
    def __init__(self, real: Any, providers: list[str], wrong: bool) -> None:
        self._real = real
        self._providers = providers
        self._wrong = wrong
        self.get_inputs, self.get_outputs, self.end_profiling = real.get_inputs, real.get_outputs, real.end_profiling

    def get_providers(self) -> list[str]:
        return self._providers

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [values * (2 if self._wrong else 1) for values in self._real.run(names, feeds)]


def plugin_device(name: str, **metadata: str) -> Any:
    """What `get_ep_devices` lists for a plug-in."""
    return types.SimpleNamespace(ep_name=name, ep_metadata=metadata)
