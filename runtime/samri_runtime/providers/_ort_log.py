"""What ONNX Runtime reports, and why a provider failed, in words that say what to do.

When a provider fails to load, ONNX Runtime logs the reason from C++ and continues without the provider. The reason
appears in the log alone, and Python has no hook for it: so file descriptor 2 is redirected while a session is created.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from samri.stderr import captured_stderr, pass_on
from samri_runtime.machine import NvidiaDriver, nvidia_driver
from samri_runtime.providers._names import CUDA, MIGRAPHX, ROCM, TENSORRT

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \[([VIWEF]):[^\]]*\] ", re.MULTILINE)
# "/path/file.cc:141 std::string onnxruntime::f(const T&)::<lambda(...)> [with T = int] text" -> "text"
_SOURCE = re.compile(
    r"(?:^|(?<=\s))(?:\S*[/\\])?[\w.]+\.(?:cc|cpp|cu|h):\d+ (?:[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?)"
    r"(?:::<lambda\([^)]*\)>(?:\(\))?(?: const)?)?(?: \[with [^\]]*\])? +"
)
_STATUS = re.compile(r"^(?:\[(?:ERROR|OpenVINO)\] ?|\[ONNXRuntimeError\] : \d+ : \w+ : )+")
# Linux: "with error: libcublasLt.so.13: cannot open shared object file: ..."; Windows: "which depends on
# "cublasLt64_12.dll" which is missing".
_MISSING_LIBRARY = re.compile(
    r"with error: (?P<linux>[^:\s]+): cannot open shared object|depends on \"(?P<windows>[^\"]+)\" which is missing"
)


@dataclass(frozen=True)
class Record:
    """One log record: its level, a letter of VIWEF, and its text on one line, without C++ file and function names."""

    level: str
    text: str


@contextlib.contextmanager
def captured_log() -> Iterator[list[Record]]:
    """Yield a list that holds ONNX Runtime's log records after the block; other text goes to stderr then.

    The redirection affects the whole process, so it is kept short, and one thread at a time does it. Without a stderr
    (in a windowed program) or space for a temporary file the list stays empty.
    """
    records: list[Record] = []
    texts: list[str] = []
    try:
        with captured_stderr() as texts:
            yield records
    finally:
        for text in texts:
            others, ort_records = split_log(text)
            records.extend(ort_records)
            pass_on(others)


def split_log(text: str) -> tuple[str, list[Record]]:
    """The text before ONNX Runtime's first log record, and the records."""
    text = _ANSI.sub("", text)
    heads = list(_RECORD.finditer(text))
    ends = [*(head.start() for head in heads), len(text)]
    records = [Record(head[1], one_line(text[head.end() : end])) for head, end in zip(heads, ends[1:], strict=True)]
    return text[: ends[0]], records


def one_line(message: str) -> str:
    """A message of ONNX Runtime on one line, without status codes and the C++ functions it passed through."""
    message = " ".join(_ANSI.sub("", message).split())
    while (shorter := _STATUS.sub("", _SOURCE.sub("", message, count=1)).strip()) != message:
        message = shorter
    return message


def ort_errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which share no base class of their own."""
    state = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return (RuntimeError, *(value for value in state if isinstance(value, type) and issubclass(value, Exception)))


def failure_reason(
    execution_provider: str,
    log: Sequence[Record],
    error: Exception | None = None,
    *,
    driver: NvidiaDriver | None = None,
) -> str:
    """One line: why a provider can't run, and the remedy where one is known.

    Args:
        execution_provider: ONNX Runtime's name of it.
        log: What ONNX Runtime logged.
        error: Its exception, if there was one.
        driver: The NVIDIA driver; by default it is queried where it matters.
    """
    message = _message(log, error)
    library = missing_library(message)
    if execution_provider in (CUDA, TENSORRT):
        driver = driver or nvidia_driver()
        if not driver.installed:
            return f"this machine has no NVIDIA driver ({driver.library} isn't found); ONNX Runtime says: {message}"
        if not driver.gpus:
            return f"the NVIDIA driver finds no GPU that this program may use; ONNX Runtime says: {message}"
        if library is not None:
            return f"{library} isn't found; {_nvidia_install(library)}"
    if execution_provider in (ROCM, MIGRAPHX) and library is not None:
        return f"{library} isn't found; install AMD's ROCm with MIGraphX, in the release that the wheel was built for"
    return message


def missing_library(message: str) -> str | None:
    """The shared library that ONNX Runtime reports as missing in `message`."""
    match = _MISSING_LIBRARY.search(message)
    return (match["linux"] or match["windows"]) if match else None


def _message(log: Sequence[Record], error: Exception | None) -> str:
    """The most informative message: a library that didn't load, else the exception, else the last log record."""
    errors = [record.text for record in log if record.level in "EF"]
    for text in errors:
        if "Failed to load library" in text or missing_library(text):
            return _without_path(text)
    if error is not None:
        return one_line(str(error))
    return (errors or [record.text for record in log] or ["ONNX Runtime gave no reason"])[-1]


def _without_path(text: str) -> str:
    return re.sub(r"^Failed to load library \S*?([^/\\\s]+) with error: ", r"\1 didn't load with error: ", text)


def _nvidia_install(library: str) -> str:
    if "nvinfer" in library or "nvonnxparser" in library:
        # Each ONNX Runtime is built for one major version, which is in the file name.
        release = re.search(r"\d+", library)
        search_path = "PATH" if library.endswith(".dll") else "LD_LIBRARY_PATH"
        return f"install TensorRT {release[0] if release else ''} and put its library folder on {search_path}"
    return "install CUDA's libraries, such as with pip install 'onnxruntime-gpu[cuda,cudnn]'"
