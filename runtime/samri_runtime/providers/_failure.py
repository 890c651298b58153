"""Why a provider failed, in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from samri_runtime.providers._names import CUDA, MIGRAPHX, ROCM, TENSORRT
from samri_runtime.providers._nvidia import NvidiaDriver, nvidia_driver
from samri_runtime.providers._ort_log import Record, one_line

# Linux: "with error: libcublasLt.so.13: cannot open shared object file: ..."; Windows: "which depends on
# "cublasLt64_12.dll" which is missing".
_MISSING_LIBRARY = re.compile(
    r"with error: (?P<linux>[^:\s]+): cannot open shared object|depends on \"(?P<windows>[^\"]+)\" which is missing"
)


def failure_reason(
    execution_provider: str,
    log: Sequence[Record],
    error: Exception | None = None,
    *,
    driver: NvidiaDriver | None = None,
) -> str:
    """One line: what kept a provider from running, and the way out where there is a known one.

    Args:
        execution_provider: ONNX Runtime's name of it.
        log: What ONNX Runtime wrote meanwhile.
        error: What it raised, if it did.
        driver: The NVIDIA driver; asked when it matters and isn't given.
    """
    said = _said(log, error)
    library = missing_library(said)
    if execution_provider in (CUDA, TENSORRT):
        driver = driver or nvidia_driver()
        if not driver.installed:
            return f"this machine has no NVIDIA driver ({driver.library} isn't found); ONNX Runtime says: {said}"
        if not driver.gpus:
            return f"the NVIDIA driver finds no GPU that this program may use; ONNX Runtime says: {said}"
        if library is not None:
            return f"{library} isn't found; {_nvidia_install(library)}"
    if execution_provider in (ROCM, MIGRAPHX) and library is not None:
        return f"{library} isn't found; install AMD's ROCm with MIGraphX, in the release that the wheel was built for"
    return said


def missing_library(message: str) -> str | None:
    """The shared library that ONNX Runtime reports as missing in `message`."""
    match = _MISSING_LIBRARY.search(message)
    return (match["linux"] or match["windows"]) if match else None


def _said(log: Sequence[Record], error: Exception | None) -> str:
    """The most telling of what was said: the library that didn't load, then the exception, then the log's end."""
    errors = [record.text for record in log if record.level in "EF"]
    for text in errors:
        if "Failed to load library" in text or missing_library(text):
            return _without_path(text)
    if error is not None:
        return one_line(str(error))
    return (errors or [record.text for record in log] or ["ONNX Runtime left it out without a reason"])[-1]


def _without_path(text: str) -> str:
    return re.sub(r"^Failed to load library \S*?([^/\\\s]+) with error: ", r"\1 didn't load with error: ", text)


def _nvidia_install(library: str) -> str:
    if "nvinfer" in library or "nvonnxparser" in library:
        # Each ONNX Runtime is built for one major version, which the file's name holds.
        release = re.search(r"\d+", library)
        search_path = "PATH" if library.endswith(".dll") else "LD_LIBRARY_PATH"
        return f"install TensorRT {release[0] if release else ''} and put its library folder on {search_path}"
    return "install CUDA's libraries, such as with pip install 'onnxruntime-gpu[cuda,cudnn]'"
