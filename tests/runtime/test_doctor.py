"""`samri-doctor` on this machine and, with recorded wheels, on others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samri.errors import MissingDependencyError, ProviderError
from samri_runtime.doctor import _diagnosis, main
from samri_runtime.doctor._trial import read_profile
from samri_runtime.machine import NvidiaDriver
from samri_runtime.providers import _opening, _ort_log
from samri_runtime.providers._names import PROVIDERS
from samri_runtime.providers._probe_graph import PROBE, probe_feeds, probe_result
from samri_runtime.providers._wheels import Wheel
from tests.support import recorded_runtime as recorded
from tests.support.recorded_runtime import CPU, CUDA, OFFERED, RecordedRuntime

GPU_WHEEL = (Wheel("onnxruntime-gpu", "1.31.1", True),)
BOTH_WHEELS = (Wheel("onnxruntime", "1.32.0", True), *GPU_WHEEL)


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def as_json(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
    result = doctor(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def gpu_wheel_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RecordedRuntime(OFFERED["onnxruntime-gpu"], [], log=recorded.CUBLAS_MISSING)
    install(monkeypatch, runtime, GPU_WHEEL)
    monkeypatch.setattr(_ort_log, "nvidia_driver", lambda: NvidiaDriver("libcuda.so.1", False, None, ()))


def install(monkeypatch: pytest.MonkeyPatch, runtime: RecordedRuntime, wheels: tuple[Wheel, ...]) -> None:
    for module in (_opening, _diagnosis):
        monkeypatch.setattr(module, "load_onnxruntime", lambda: runtime)
        monkeypatch.setattr(module, "installed_wheels", lambda: wheels)
    _opening.probe_provider.cache_clear()


def test_the_text_tells_versions_wheels_and_providers() -> None:
    result = doctor()
    assert result.exit_code == 0
    assert result.stderr == ""
    for words in ("samri ", f"numpy {np.__version__}", "ONNX Runtime ", "wheels: onnxruntime", "cpu       works"):
        assert words in result.stdout
    assert "Requested auto: runs on " in result.stdout


def test_the_json_holds_every_provider_and_no_problem() -> None:
    found = as_json("--provider", "cpu")
    assert [state["provider"] for state in found["providers"]] == [name for name in PROVIDERS if name != "auto"]
    assert found["providers"][0] == {"provider": "cpu", "offered": True, "usable": True, "reason": None}
    assert (found["asked"], found["runs_on"], found["problems"]) == ("cpu", "cpu", [])


def test_a_bundle_is_run_and_its_nodes_are_counted(bundle: Path) -> None:
    found = as_json("--model", str(bundle), "--provider", "cpu")
    assert [(run["role"], run["provider"], run["kept"]) for run in found["graphs"]] == [
        ("encoder", "cpu", True),
        ("decoder", "cpu", True),
        ("decoder_image", "cpu", True),
        ("decoder_prompts", "cpu", True),
    ]
    for run in found["graphs"]:
        (share,) = run["shares"]
        assert share["execution_provider"] == CPU
        assert share["nodes"] > 10
        assert share["ms"] > 0
    text = doctor("--model", str(bundle)).stdout
    assert "encoder fp32 on cpu" in text
    assert f"{CPU}: " in text


def test_a_bundle_that_is_none_is_one_plain_line(tmp_path: Path) -> None:
    result = doctor("--model", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("samri-doctor: error: no bundle at ")
    assert result.stderr.count("\n") == 1


def test_wrong_usage_ends_with_2() -> None:
    assert doctor("--provider", "gpu").exit_code == 2


def test_a_malformed_provider_option_is_one_plain_line() -> None:
    result = doctor("--provider", "cpu", "--provider-option", "threads")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("samri-doctor: error: ")
    assert "'threads' is not of the form key=value" in line


@pytest.mark.usefixtures("gpu_wheel_without_gpu")
def test_cuda_without_a_gpu_ends_with_1_and_the_reason() -> None:
    result = doctor("--provider", "cuda")
    assert result.exit_code == 1
    *progress, line = result.stderr.splitlines()
    assert line.startswith("samri-doctor: error: cuda can't be used: this machine has no NVIDIA driver")
    assert all(line.startswith("samri-doctor: trying ") for line in progress)
    assert "Requested cuda: does not run" in result.stdout
    assert "cuda      doesn't work: this machine has no NVIDIA driver" in result.stdout


@pytest.mark.usefixtures("gpu_wheel_without_gpu")
def test_auto_without_a_gpu_ends_with_0_and_a_note() -> None:
    found = as_json()
    assert found["runs_on"] == "cpu"
    assert found["notes"][0].startswith("cuda can't be used: ")
    assert found["notes"][0].endswith("; running on cpu instead")


def test_wheels_in_conflict_are_a_problem_whatever_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, RecordedRuntime(OFFERED["onnxruntime"], []), BOTH_WHEELS)
    for provider in ("auto", "cpu"):
        found = as_json("--provider", provider, exit_code=1)
        assert found["runs_on"] == "cpu"
        (problem,) = found["problems"]
        assert problem.endswith("run pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'samri[gpu]'")
        assert found["notes"] == []


def test_a_provider_that_leaves_heavy_nodes_to_the_cpu_breaks_its_promise(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    # The recorded sessions say that they have CUDA, and compute on the real CPU.
    install(monkeypatch, RecordedRuntime(OFFERED["onnxruntime-gpu"], [CUDA]), GPU_WHEEL)
    found = as_json("--model", str(bundle), "--provider", "cuda", exit_code=1)
    assert found["runs_on"] == "cuda"
    assert [problem.partition(":")[0] for problem in found["problems"]] == [
        "the encoder is not all on cuda",
        "the decoder is not all on cuda",
    ]
    assert found["graphs"][0]["kept"] is False
    assert found["graphs"][0]["elsewhere"]
    assert as_json("--model", str(bundle))["problems"] == [], "auto promises nothing"


def test_a_missing_onnxruntime_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingDependencyError("ONNX Runtime isn't installed")

    monkeypatch.setattr(_diagnosis, "load_onnxruntime", missing)
    result = doctor()
    assert result.exit_code == 1
    assert "ONNX Runtime: can't be imported" in result.stdout
    assert result.stderr == "samri-doctor: error: ONNX Runtime isn't installed\n"


def test_plugins_that_samri_does_not_know_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = (Wheel("onnxruntime", "1.32.0", True), Wheel("onnxruntime-ep-webgpu", "0.4.0", False))
    install(monkeypatch, RecordedRuntime(OFFERED["onnxruntime"], []), wheels)
    assert as_json()["notes"] == ["samri doesn't use onnxruntime-ep-webgpu 0.4.0"]


@pytest.mark.slow
def test_the_command_runs_as_a_process_and_leaves_no_file_behind(tmp_path: Path, bundle: Path) -> None:
    code = "from samri_runtime.doctor import main; main()"
    environment = {**os.environ, **dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), str(tmp_path))}
    command = [sys.executable, "-c", code, "--model", str(bundle), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert all(line.startswith("samri-doctor: running ") for line in result.stderr.splitlines())
    assert json.loads(result.stdout)["runs_on"] == "cpu"
    assert list(tmp_path.iterdir()) == []


# The probe graph, whose bytes are written without the onnx package.


def test_the_probe_graph_is_what_onnx_builds() -> None:
    model = onnx.load_from_string(PROBE)
    onnx.checker.check_model(model, full_check=True)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["filtered"], name="filtered", pads=[1, 1, 1, 1]),
            helper.make_node("MatMul", ["filtered", "matrix"], ["y"], name="y"),
        ],
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 16, 16])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 16, 16])],
        [numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name) for tensor in model.graph.initializer],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert onnx.printer.to_text(model) == onnx.printer.to_text(built)


def test_the_probes_expected_numbers_are_those_of_onnxs_reference() -> None:
    (expected,) = ReferenceEvaluator(onnx.load_from_string(PROBE)).run(None, probe_feeds())
    np.testing.assert_allclose(probe_result(), expected, rtol=1e-5)
    assert expected.min() > 1


# Profiles, as ONNX Runtime writes them.


def node(provider: str, kind: str, microseconds: int) -> dict[str, Any]:
    arguments = {"provider": provider, "op_name": kind, "node_index": "3"}
    return {"cat": "Node", "name": f"{kind}_3_kernel_time", "ph": "X", "ts": 7, "dur": microseconds, "args": arguments}


def profile(folder: Path, *events: Any) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps([{"cat": "Session", "name": "model_run", "dur": 99, "args": {}}, *events]))
    return path


def test_nodes_and_time_are_counted_by_provider(tmp_path: Path) -> None:
    events = [node(CUDA, "MatMul", 4000), node(CUDA, "Add", 500), node(CPU, "Shape", 20), node(CPU, "If", 9000)]
    placement = read_profile(profile(tmp_path, *events), CUDA)
    assert placement.as_promised
    assert [(share.execution_provider, share.nodes, share.milliseconds) for share in placement.shares] == [
        (CUDA, 2, 4.5),
        (CPU, 2, 0.02),
    ]


@pytest.mark.parametrize(
    "kind",
    ["MatMul", "FusedMatMul", "MatMulInteger", "Gemm", "Conv", "ConvTranspose", "QLinearConv", "MultiHeadAttention"],
)
def test_a_heavy_node_elsewhere_breaks_the_promise(tmp_path: Path, kind: str) -> None:
    placement = read_profile(profile(tmp_path, node(CUDA, "MatMul", 9), node(CPU, kind, 1), node(CPU, kind, 1)), CUDA)
    assert not placement.as_promised
    assert placement.elsewhere == {kind: 2}


@pytest.mark.parametrize("kind", ["Add", "Reshape", "Convert", "LayerNormalization", "Resize", "Cast"])
def test_a_light_node_elsewhere_does_not(tmp_path: Path, kind: str) -> None:
    assert read_profile(profile(tmp_path, node(CUDA, "MatMul", 9), node(CPU, kind, 1)), CUDA).as_promised


def test_a_provider_that_ran_nothing_breaks_its_promise(tmp_path: Path) -> None:
    assert not read_profile(profile(tmp_path, node(CPU, "Add", 1)), CUDA).as_promised


def test_a_subgraph_compiled_by_the_provider_is_its_own(tmp_path: Path) -> None:
    event = node(recorded.OPENVINO, "OpenVINO-EP-subgraph_1", 2042)
    assert read_profile(profile(tmp_path, event), recorded.OPENVINO).as_promised


def test_events_of_other_shapes_are_stepped_over(tmp_path: Path) -> None:
    odd = [
        None,
        3,
        [],
        {},
        {"cat": "Node"},
        {"cat": "Node", "name": "x_kernel_time", "args": {"provider": 1}, "dur": 1},
    ]
    placement = read_profile(profile(tmp_path, *odd, node(CPU, "MatMul", 1)), CPU)
    assert placement.shares[0].nodes == 1


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"cat": "Node", '])
def test_a_profile_that_breaks_off_is_one_plain_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(ProviderError, match="ONNX Runtime's profile"):
        read_profile(tmp_path / "profile.json", CPU)
