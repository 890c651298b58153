"""Sessions on the real ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samri import process
from samri.errors import BundleError, ProviderError
from samri_runtime.providers import Session
from samri_runtime.providers._names import PROVIDERS
from samri_runtime.providers._opening import open_probe, open_session


def model() -> onnx.ModelProto:
    """relu(conv(x)) as rows, times a matrix."""
    random = np.random.default_rng(0)
    weights = {"kernel": random.standard_normal((8, 3, 3, 3)), "matrix": random.standard_normal((16 * 16, 5))}
    initializers = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([0, 8, -1]), "rows"))
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["filtered"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["filtered"], ["positive"]),
        helper.make_node("Reshape", ["positive", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 5]),
        helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["N", 8, 16, 16]),
    ]
    graph = helper.make_graph(nodes, "model", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "model.onnx"
    onnx.save(model(), path)
    return path


@pytest.fixture(scope="module")
def session(graph: Path) -> Session:
    return open_session(graph, "cpu")


# What would keep ONNX Runtime's telemetry off without SAMRI.
TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "CI", "GITHUB_ACTIONS", "GITLAB_CI"}


def batch(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 16, 16), dtype=np.float32)}


def test_outputs_come_by_name_and_are_those_of_the_reference(session: Session) -> None:
    reference = ReferenceEvaluator(model())
    for count in (2, 1, 3):
        outputs = session.run(batch(count))
        assert list(outputs) == ["y", "positive"]
        for ours, theirs in zip(outputs.values(), reference.run(["y", "positive"], batch(count)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_a_session_tells_its_inputs_and_outputs(session: Session) -> None:
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in session.inputs] == [
        ("x", ("N", 3, 16, 16), "tensor(float)")
    ]
    assert [tensor.name for tensor in session.outputs] == ["y", "positive"]
    assert (session.provider, session.execution_provider, session.notes) == ("cpu", "CPUExecutionProvider", ())


def test_threads_may_run_one_session_at_once(session: Session) -> None:
    feeds = [batch(2, seed) for seed in range(16)]
    expected = [session.run(feed)["y"] for feed in feeds]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(session.run, feeds), expected, strict=True):
            assert np.array_equal(ours["y"], theirs)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.zeros((1, 3, 16, 16), np.float32)},
        {"x": np.zeros((1, 3, 16, 15), np.float32)},
        {"x": np.zeros((1, 3, 16, 16), np.float64)},
    ],
    ids=["missing", "unknown", "shape", "type"],
)
def test_wrong_inputs_are_a_value_error(session: Session, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"x|z"):
        session.run(feeds)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "No graph was found|does not have a graph"),
        (b"a checkpoint, perhaps", "Protobuf parsing failed"),
        (model().SerializeToString()[:-900], "Protobuf parsing failed"),
        (model().SerializeToString().replace(b"MatMul", b"MatMux"), "No Op registered for MatMux"),
    ],
    ids=["empty", "text", "cut", "unknown operator"],
)
def test_a_damaged_graph_is_named_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    for provider in ("cpu", "auto"):
        with pytest.raises(BundleError, match=words) as caught:
            open_session(path, provider)  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"{path} can't be loaded by ONNX Runtime ")
        assert "\n" not in str(caught.value)


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no graph at "):
        open_session(tmp_path / "encoder.onnx", "cpu")


@pytest.mark.parametrize("threads", [0, -1, 1 << 40])
def test_a_session_needs_a_thread(graph: Path, threads: int) -> None:
    with pytest.raises(ProviderError, match="the number of threads must be from 1 to"):
        open_session(graph, "cpu", threads=threads)


def test_options_without_a_named_provider_are_an_error(graph: Path) -> None:
    with pytest.raises(ProviderError, match="provider options belong to one provider"):
        open_session(graph, "auto", provider_options={"device_id": "0"})


def settings_of(session: Session) -> Any:
    return session._session.get_session_options()


def test_sessions_wait_without_spinning_and_plan_no_memory_pattern(graph: Path) -> None:
    settings = settings_of(open_session(graph, "cpu", threads=2))
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.intra_op_num_threads == 2
    assert not settings.enable_mem_pattern


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux restricts a process to some cores this way")
def test_a_process_restricted_to_some_cores_gets_as_many_threads(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "_quotas", lambda *_: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert settings_of(open_session(graph, "cpu")).intra_op_num_threads == 3
    monkeypatch.setattr(process, "_quotas", lambda *_: [2])
    assert settings_of(open_session(graph, "cpu")).intra_op_num_threads == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert settings_of(open_session(graph, "cpu")).intra_op_num_threads == 1
    assert settings_of(open_session(graph, "cpu", threads=3)).intra_op_num_threads == 3


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("quiet")
def test_nothing_is_printed_by_sessions_that_work_or_fail(graph: Path, tmp_path: Path) -> None:
    open_session(graph, "auto").run(batch(1))
    (tmp_path / "bad.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(BundleError):
        open_session(tmp_path / "bad.onnx", "auto")


def test_onnx_runtimes_telemetry_is_off(graph: Path, tmp_path: Path) -> None:
    # Where it is on, it keeps a device id and a database under HOME and a session file in the temporary folder.
    code = f"from samri_runtime.providers import open_session; open_session({str(graph)!r}, 'cpu')"
    folders = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME"), str(tmp_path))
    ours = {name: value for name, value in os.environ.items() if name not in TELEMETRY_OFF}
    subprocess.run([sys.executable, "-c", code], env={**ours, **folders}, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_works_here_or_says_why_not_in_one_line(provider: str) -> None:
    try:
        session = open_probe(provider)  # type: ignore[arg-type]
    except ProviderError as error:
        assert provider not in ("auto", "cpu")
        assert str(error).startswith(f"{provider} can't be used: ")
        assert "\n" not in str(error)
    else:
        assert provider in ("auto", "rocm", session.provider)
