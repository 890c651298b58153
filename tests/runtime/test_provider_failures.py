"""Reasons read from what ONNX Runtime logs and raises, with recorded lines."""

from __future__ import annotations

import os
import sys

import pytest

from samri_runtime.machine import nvidia_driver
from samri_runtime.providers._ort_log import captured_log, failure_reason, missing_library, one_line, split_log
from tests.support import recorded_runtime as recorded

DRIVER_TOO_OLD = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, "
    "const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; std::conditional_t<THRW, "
    "void, common::Status> = void] CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; "
    "GPU=0"
)


@pytest.mark.parametrize(
    ("log", "levels", "text"),
    [
        (
            recorded.CUBLAS_MISSING,
            "EW",
            "Failed to load library /env/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
        ),
        (recorded.OPENVINO_NO_GPU, "EW", "Device GPU is not available"),
        (
            recorded.OPENVINO_BAD_JSON,
            "E",
            "JSON parsing error: [json.exception.parse_error.101] parse error at line 1, column 1: syntax error while "
            "parsing value - invalid literal; last read: '/'",
        ),
    ],
)
def test_a_log_record_is_its_message_on_one_line(log: str, levels: str, text: str) -> None:
    others, records = split_log(log)
    assert others == ""
    assert "".join(record.level for record in records) == levels
    assert records[0].text == text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (DRIVER_TOO_OLD, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0"),
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed", "Load model failed"),
        ("one\n two\n", "one two"),
        ("", ""),
    ],
)
def test_an_exceptions_text_loses_status_codes_and_cpp_names(message: str, text: str) -> None:
    assert one_line(message) == text


def test_text_of_other_programs_passes_through_the_capture(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_log() as records:
        print("from python", file=sys.stderr)
        os.write(2, recorded.OPENVINO_NO_GPU.encode())
        assert records == []
    assert [record.text for record in records][:1] == ["Device GPU is not available"]
    print("afterwards", file=sys.stderr)
    assert capfd.readouterr().err == "from python\nafterwards\n"


def test_the_capture_ends_when_an_exception_leaves_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), captured_log() as records:
        os.write(2, recorded.OPENVINO_NO_GPU.encode())
        raise KeyboardInterrupt
    assert len(records) == 2
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_a_windowed_program_without_stderr_is_served_without_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_descriptor: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "dup", closed)
    monkeypatch.setattr(sys, "stderr", None)
    with captured_log() as records:
        pass
    assert records == []


@pytest.mark.parametrize(
    ("message", "library"),
    [
        (recorded.CUBLAS_MISSING, "libcublasLt.so.13"),
        (recorded.NVINFER_MISSING, "libnvinfer.so.10"),
        (
            'Error loading "C:\\onnxruntime_providers_cuda.dll" which depends on "cublasLt64_12.dll" which is missing.',
            "cublasLt64_12.dll",
        ),
        ("Device GPU is not available", None),
    ],
)
def test_the_missing_library_is_named(message: str, library: str | None) -> None:
    assert missing_library(message) == library


def test_rocm_that_is_not_installed_is_named() -> None:
    log = recorded.CUBLAS_MISSING.replace("libcublasLt.so.13", "libmigraphx_c.so.3")
    reason = failure_reason(recorded.MIGRAPHX, split_log(log)[1])
    assert reason.startswith("libmigraphx_c.so.3 isn't found; install AMD's ROCm with MIGraphX")


def test_a_failure_without_a_word_says_so() -> None:
    assert failure_reason(recorded.DIRECTML, []) == "ONNX Runtime gave no reason"


def test_the_driver_answers_with_or_without_hardware() -> None:
    driver = nvidia_driver()
    assert driver.installed or (driver.cuda_version, driver.gpus) == (None, ())
