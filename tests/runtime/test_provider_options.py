"""Options of the providers: what a user may give, what SAMRI sets, and where compiled engines are kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from samri.bundle import GraphFile
from samri.errors import ProviderError
from samri_runtime.machine import user_folder
from samri_runtime.providers._options import engine_folder, parse_provider_options, with_defaults
from samri_runtime.providers._probe_graph import PROBE
from tests.support.recorded_runtime import COREML, CPU, CUDA, MIGRAPHX, OPENVINO, TENSORRT


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SAMRI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(PROBE)
    return path


def options(
    provider: str, graph: Path | None, threads: int | None = None, version: tuple[int, ...] = (1, 31), **own: str
):
    return with_defaults(provider, GraphFile(graph) if graph else None, own, threads=threads, version=version)


@given(st.dictionaries(st.text("abc_.XYZ", min_size=1), st.text("abc=/ {}:").map(str.strip)))
def test_pairs_become_the_options_that_they_spell(expected: dict[str, str]) -> None:
    assert parse_provider_options(f"{key}={value}" for key, value in expected.items()) == expected


@pytest.mark.parametrize("pair", ["device_id", "=1", "", " =1"])
def test_a_pair_without_key_or_equals_sign_is_an_error(pair: str) -> None:
    with pytest.raises(ProviderError, match="is not of the form key=value"):
        parse_provider_options([pair])


def test_a_key_given_twice_is_an_error() -> None:
    with pytest.raises(ProviderError, match="'device_id' is given twice"):
        parse_provider_options(["device_id=0", "device_id=1"])


def test_the_users_options_are_laid_over_the_defaults() -> None:
    defaults = options(CUDA, None)
    assert defaults["use_tf32"] == "0"
    assert options(CUDA, None, use_tf32="1", device_id="1") == {**defaults, "use_tf32": "1", "device_id": "1"}


def test_the_cpu_takes_no_options() -> None:
    assert options(CPU, None) == {}
    with pytest.raises(ProviderError, match="the cpu provider has no options: leave out device_id"):
        options(CPU, None, device_id="0")


@pytest.mark.parametrize(
    ("provider", "key"),
    [(TENSORRT, "trt_engine_cache_path"), (MIGRAPHX, "migraphx_model_cache_dir"), (COREML, "ModelCacheDirectory")],
)
def test_engines_are_kept_in_the_users_cache(cache: Path, graph: Path, provider: str, key: str) -> None:
    folder = Path(options(provider, graph)[key])
    assert folder.is_dir()
    assert folder.is_relative_to(cache)


def test_graphs_that_differ_in_one_weight_share_no_engine(cache: Path, graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "encoder.onnx"
    other.parent.mkdir()
    changed = bytearray(PROBE)
    changed[PROBE.index(b"kernel") + 30] ^= 1
    other.write_bytes(changed)
    assert engine_folder(GraphFile(other)) != engine_folder(GraphFile(graph))
    other.write_bytes(PROBE)
    assert engine_folder(GraphFile(other)) == engine_folder(GraphFile(graph))


def test_graphs_that_differ_in_external_weights_share_no_engine(cache: Path, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(64, np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])
    model = helper.make_model(
        helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [result], [weights])
    )
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="external.data", size_threshold=0)
    before = engine_folder(GraphFile(path))
    data = bytearray((tmp_path / "external.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "external.data").write_bytes(data)
    assert engine_folder(GraphFile(path)) != before


def test_a_cache_that_cannot_be_written_means_no_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMRI_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert options(TENSORRT, graph) == {}


def test_migraphx_before_1_23_gets_no_cache_option_since_it_would_refuse_it(cache: Path, graph: Path) -> None:
    assert options(MIGRAPHX, graph, version=(1, 22)) == {}


def test_the_cache_is_where_the_system_has_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SAMRI_CACHE_DIR", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    places = {"linux": tmp_path / "samri", "win32": tmp_path / "samri"}
    if os.name == "posix":
        places["darwin"] = tmp_path / "Library" / "Caches" / "samri"
    for system, folder in places.items():
        monkeypatch.setattr(sys, "platform", system)
        assert user_folder("cache") == folder


def test_openvino_computes_in_full_precision_on_the_threads_asked_for(graph: Path) -> None:
    given = options(OPENVINO, graph, threads=3)
    assert given["device_type"] == "CPU"
    assert json.loads(given["load_config"]) == {
        "CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "3"}
    }


def test_openvinos_properties_are_laid_over_the_defaults_one_by_one(graph: Path) -> None:
    own = json.dumps({"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}})
    given = options(OPENVINO, graph, threads=2, load_config=own)
    assert json.loads(given["load_config"]) == {
        "CPU": {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "2"}
    }


def test_openvino_keeps_what_it_compiles_for_a_gpu(cache: Path, graph: Path) -> None:
    config = json.loads(options(OPENVINO, graph, device_type="GPU.1")["load_config"])
    assert Path(config["GPU"]["CACHE_DIR"]).is_dir()
    assert config["GPU"]["INFERENCE_PRECISION_HINT"] == "f32"


def test_openvinos_own_precision_and_cache_options_are_left_alone(graph: Path) -> None:
    given = options(OPENVINO, graph, device_type="GPU", precision="FP16", cache_dir="kept", num_of_threads="4")
    assert given == {"device_type": "GPU", "precision": "FP16", "cache_dir": "kept", "num_of_threads": "4"}


@pytest.mark.parametrize("text", ["config.json", "[]", '{"CPU": "bf16"}', '{"CPU": {}', '{"bf16": {}}'])
def test_a_load_config_that_openvino_would_ignore_is_an_error(graph: Path, text: str) -> None:
    with pytest.raises(ProviderError, match="load_config"):
        options(OPENVINO, graph, load_config=text)
