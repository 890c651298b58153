"""Which provider runs, for hardware that isn't here, against recorded provider lists and logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from samri.errors import ProviderError
from samri_runtime.machine import NvidiaDriver
from samri_runtime.providers import Session, _opening, _ort_log
from samri_runtime.providers._names import EXECUTION_PROVIDERS, PROVIDERS, Provider
from samri_runtime.providers._opening import open_session
from samri_runtime.providers._probe_graph import PROBE
from samri_runtime.providers._wheels import EXTRAS, Wheel, not_offered
from tests.support import recorded_runtime as recorded
from tests.support.recorded_runtime import (
    CPU,
    CUDA,
    DIRECTML,
    MIGRAPHX,
    OFFERED,
    OPENVINO,
    ROCM,
    TENSORRT,
    RecordedRuntime,
)

NO_DRIVER = NvidiaDriver("libcuda.so.1", False, None, ())
NO_GPU = NvidiaDriver("libcuda.so.1", True, "12.4", ())
ONE_GPU = NvidiaDriver("libcuda.so.1", True, "13.0", ("NVIDIA H100",))
ACCELERATORS = [name for name in PROVIDERS if name not in ("auto", "cpu")]


class Machine:
    """A machine with a recorded ONNX Runtime; keeps what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
        self.graph = graph
        self._monkeypatch = monkeypatch
        self.runtime: RecordedRuntime

    def has(self, runtime: RecordedRuntime, wheels: tuple[Wheel, ...] = (), driver: NvidiaDriver = ONE_GPU) -> None:
        self.runtime = runtime
        self._monkeypatch.setattr(_opening, "load_onnxruntime", lambda: runtime)
        self._monkeypatch.setattr(_opening, "installed_wheels", lambda: wheels)
        self._monkeypatch.setattr(_ort_log, "nvidia_driver", lambda: driver)
        _opening.probe_provider.cache_clear()

    def open(self, provider: Provider) -> Session:
        return open_session(self.graph, provider)

    def refusal(self, provider: Provider) -> str:
        with pytest.raises(ProviderError) as caught:
            self.open(provider)
        return str(caught.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    monkeypatch.setenv("SAMRI_CACHE_DIR", str(tmp_path / "cache"))
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(PROBE)
    return Machine(monkeypatch, graph)


@pytest.mark.parametrize(
    ("wheel", "loading", "provider", "runs_on"),
    [
        ("onnxruntime", [], "auto", CPU),
        ("onnxruntime on macOS", [recorded.COREML], "auto", CPU),
        ("onnxruntime on macOS", [recorded.COREML], "coreml", recorded.COREML),
        ("onnxruntime-gpu", [TENSORRT, CUDA], "auto", CUDA),
        ("onnxruntime-gpu", [TENSORRT, CUDA], "cuda", CUDA),
        ("onnxruntime-gpu", [TENSORRT, CUDA], "tensorrt", TENSORRT),
        ("onnxruntime-gpu", [TENSORRT, CUDA], "cpu", CPU),
        ("onnxruntime-gpu", [], "auto", CPU),
        ("onnxruntime-gpu", [], "cpu", CPU),
        ("onnxruntime-rocm 1.22", [MIGRAPHX, ROCM], "auto", ROCM),
        ("onnxruntime-rocm 1.22", [MIGRAPHX, ROCM], "rocm", ROCM),
        ("onnxruntime-rocm 1.22", [MIGRAPHX, ROCM], "migraphx", MIGRAPHX),
        ("onnxruntime-migraphx", [MIGRAPHX], "auto", MIGRAPHX),
        ("onnxruntime-migraphx", [MIGRAPHX], "rocm", MIGRAPHX),
        ("onnxruntime-migraphx", [MIGRAPHX], "migraphx", MIGRAPHX),
        ("onnxruntime-migraphx", [], "auto", CPU),
        ("onnxruntime-openvino", [OPENVINO], "auto", OPENVINO),
        ("onnxruntime-openvino", [OPENVINO], "openvino", OPENVINO),
        ("onnxruntime-openvino", [OPENVINO], "cpu", CPU),
        ("onnxruntime-directml", [DIRECTML], "auto", DIRECTML),
        ("onnxruntime-directml", [DIRECTML], "directml", DIRECTML),
    ],
)
def test_the_session_has_the_provider(
    machine: Machine, wheel: str, loading: list[str], provider: Provider, runs_on: str
) -> None:
    machine.has(RecordedRuntime(OFFERED[wheel], loading))
    session = machine.open(provider)
    assert session.execution_provider == runs_on
    assert EXECUTION_PROVIDERS[session.provider][0] == runs_on


@pytest.mark.parametrize("provider", ACCELERATORS)
def test_a_provider_that_silently_falls_back_is_an_error(machine: Machine, provider: Provider) -> None:
    machine.has(RecordedRuntime([*EXECUTION_PROVIDERS[provider], CPU], loading=[]))
    assert machine.refusal(provider).startswith(f"{provider} can't be used: ")


@pytest.mark.parametrize("provider", ACCELERATORS)
def test_a_provider_that_the_wheel_lacks_is_an_error(machine: Machine, provider: Provider) -> None:
    machine.has(RecordedRuntime(OFFERED["onnxruntime"], []), (Wheel("onnxruntime", "1.32.0", True),))
    assert machine.refusal(provider).startswith(f"{provider} can't be used: ")


@pytest.mark.parametrize(
    ("provider", "system"),
    [
        ("cuda", "linux"),
        ("tensorrt", "win32"),
        ("rocm", "linux"),
        ("migraphx", "linux"),
        ("openvino", "win32"),
        ("directml", "win32"),
    ],
)
def test_the_error_for_an_absent_provider_holds_the_pip_lines(provider: Provider, system: str) -> None:
    wheels = (Wheel("onnxruntime", "1.32.0", True),)
    assert str(not_offered(provider, OFFERED["onnxruntime"], wheels, system)) == (
        f"{provider} can't be used: onnxruntime 1.32.0 has no such provider (only cpu): "
        f"run pip uninstall -y onnxruntime, then pip install 'samri[{EXTRAS[provider]}]'"
    )


@pytest.mark.parametrize(
    ("provider", "system", "words"),
    [
        ("cuda", "darwin", "Linux and Windows only"),
        ("rocm", "win32", "Linux only"),
        ("directml", "linux", "Windows only"),
        ("coreml", "linux", "macOS only"),
    ],
)
def test_no_pip_line_is_given_where_the_system_has_no_such_provider(
    provider: Provider, system: str, words: str
) -> None:
    line = str(not_offered(provider, OFFERED["onnxruntime"], (), system))
    assert words in line
    assert "pip" not in line


def test_wheels_in_conflict_are_the_reason_for_an_absent_provider(machine: Machine) -> None:
    wheels = (Wheel("onnxruntime", "1.32.0", True), Wheel("onnxruntime-gpu", "1.31.1", True))
    machine.has(RecordedRuntime(OFFERED["onnxruntime"], []), wheels)
    assert machine.refusal("cuda") == (
        "cuda can't be used: onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are installed over each other: "
        "run pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'samri[gpu]'"
    )
    assert "are installed over each other" in machine.open("auto").notes[0]


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (NO_DRIVER, "this machine has no NVIDIA driver (libcuda.so.1 isn't found); ONNX Runtime says: "),
        (NO_GPU, "the NVIDIA driver finds no GPU that this program may use; ONNX Runtime says: "),
        (ONE_GPU, "libcublasLt.so.13 isn't found; install CUDA's libraries, such as with pip install"),
    ],
)
def test_cuda_names_what_is_missing_and_auto_notes_it(
    machine: Machine, driver: NvidiaDriver, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime = RecordedRuntime(OFFERED["onnxruntime-gpu"], [], log=recorded.CUBLAS_MISSING)
    machine.has(runtime, driver=driver)
    refusal = machine.refusal("cuda")
    assert refusal.startswith(f"cuda can't be used: {words}")
    assert "\n" not in refusal
    session = machine.open("auto")
    assert session.provider == "cpu"
    assert session.notes == (f"{refusal}; running on cpu instead",)
    assert capfd.readouterr().err == "", "the log belongs in the error, not on stderr"


def test_tensorrt_names_its_missing_library_rather_than_the_exception(machine: Machine) -> None:
    runtime = RecordedRuntime(
        OFFERED["onnxruntime-gpu"], [CUDA], recorded.NVINFER_MISSING, RuntimeError(recorded.NVINFER_RAISED)
    )
    machine.has(runtime)
    assert machine.refusal("tensorrt") == (
        "tensorrt can't be used: libnvinfer.so.10 isn't found; install TensorRT 10 and put its library folder on "
        "LD_LIBRARY_PATH"
    )


def test_tensorrt_leaves_its_other_nodes_to_cuda(machine: Machine) -> None:
    machine.has(RecordedRuntime(OFFERED["onnxruntime-gpu"], [TENSORRT, CUDA]))
    machine.open("tensorrt")
    (providers,) = machine.runtime.asked
    assert [name for name, _ in providers] == [TENSORRT, CUDA, CPU]


def test_a_gpu_that_raises_while_loading_is_left_out_by_auto(machine: Machine) -> None:
    machine.has(RecordedRuntime(OFFERED["onnxruntime-gpu"], [], raised=RuntimeError("CUDA failure 999: unknown error")))
    session = machine.open("auto")
    assert session.provider == "cpu"
    assert "CUDA failure 999: unknown error" in session.notes[0]


def test_a_gpu_that_computes_wrong_numbers_is_left_out_by_auto(machine: Machine) -> None:
    machine.has(RecordedRuntime(OFFERED["onnxruntime-directml"], [DIRECTML], wrong=True))
    session = machine.open("auto")
    assert session.provider == "cpu"
    assert "wrong numbers" in session.notes[0]


def test_openvino_without_its_device_gives_openvinos_own_words(machine: Machine) -> None:
    machine.has(RecordedRuntime(OFFERED["onnxruntime-openvino"], [], log=recorded.OPENVINO_NO_GPU))
    assert machine.refusal("openvino") == "openvino can't be used: Device GPU is not available"


def test_rocm_says_that_migraphx_runs(machine: Machine) -> None:
    machine.has(RecordedRuntime(OFFERED["onnxruntime-migraphx"], [MIGRAPHX]))
    session = machine.open("rocm")
    assert session.provider == "migraphx"
    assert session.notes == ("rocm runs as migraphx, since this ONNX Runtime has no provider of that name",)
    assert machine.open("auto").notes == (), "nobody asked for rocm"


def test_an_error_that_is_logged_by_a_session_that_works_becomes_a_note(machine: Machine) -> None:
    runtime = RecordedRuntime(OFFERED["onnxruntime-gpu"], [TENSORRT], log=recorded.CUBLAS_MISSING)
    machine.has(runtime)
    (note,) = machine.open("tensorrt").notes
    assert "libcublasLt.so.13" in note


def test_an_unknown_name_lists_the_known_ones(machine: Machine) -> None:
    with pytest.raises(ProviderError, match="there is no provider 'gpu': choose one of auto, cpu, cuda, "):
        open_session(machine.graph, "gpu")  # type: ignore[arg-type]
