from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from skimage.io import imsave

from samri.bundle import Bundle
from samri.errors import InputError, VerificationError
from samri.manifest import Precision
from samri.preprocessing import profile
from samri_export import OFFERED_PRECISIONS, _gate_slices, _lower_precisions, export_bundle
from samri_export._fp16 import overflowing, to_fp16
from samri_export._gate_slices import gate_slices
from samri_export._int8 import LARGEST_WEIGHT, linear_layers, to_int8
from samri_export._report import THRESHOLDS, PrecisionMeasurement, PrecisionResult
from samri_export.command import main
from samri_runtime import Predictor
from tests.support.parity import picture


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Bundle:
    """`checkpoint` in every precision, judged on the T1 template. Don't write into it."""
    output = tmp_path_factory.mktemp("lower") / "bundle"
    return export_bundle(checkpoint, output, precisions=("fp32", "fp16", "int8"), verify="quick")


def variant(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    (entry,) = (v for v in bundle.manifest.verification["variants"] if v["precision"] == precision)
    return dict(entry)


def one_layer(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any] | None, **attributes: Any) -> onnx.ModelProto:
    """y = x W + b as a `Gemm`, or as a `MatMul` when there is no bias."""
    tensors = [numpy_helper.from_array(weights, "w")]
    if bias is not None:
        tensors.append(numpy_helper.from_array(bias, "b"))
    kind = "MatMul" if bias is None else "Gemm"
    node = make_node(kind, ["x", *(tensor.name for tensor in tensors)], ["y"], "layer", **attributes)
    rows, columns = weights.shape[::-1] if attributes.get("transB") else weights.shape
    value = make_tensor_value_info
    graph = make_graph([node], "g", [value("x", 1, ["n", rows])], [value("y", 1, ["n", columns])], initializer=tensors)
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, **feeds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, feeds)
    return np.asarray(result)


@pytest.mark.parametrize(("with_bias", "transposed"), [(True, True), (True, False), (False, False)])
def test_a_layer_in_integers_is_the_rounded_product(with_bias: bool, transposed: bool) -> None:
    random = np.random.default_rng(0)
    # Columns of very different sizes: one scale for all of them would lose the small ones.
    weights = (random.standard_normal((96, 64)) * np.geomspace(1e-3, 10, 64)).astype(np.float32)
    bias = random.standard_normal(64).astype(np.float32) if with_bias else None
    x = random.standard_normal((50, 96)).astype(np.float32)
    model = one_layer(weights.T.copy() if transposed else weights, bias, **({"transB": 1} if transposed else {}))
    integers = to_int8(model)
    onnx.checker.check_model(integers, full_check=True)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {node.op_type for node in integers.graph.node}
    # By hand, in float64: columns rounded to 1/64 of their largest weight, x to 255 steps.
    step = np.abs(weights).max(axis=0) / LARGEST_WEIGHT
    rounded = np.rint(weights / step) * step
    x_step = (x.max() - x.min()) / 255
    expected = x.astype(np.float64) @ rounded + (0 if bias is None else bias)
    allowed = 0.5 * x_step * np.abs(rounded).sum(axis=0) + 1e-5
    result = run(integers, x=x)
    assert (np.abs(result - expected) <= allowed).all()
    assert np.abs(result - expected).max() > 0  # Integers did compute it.


def test_integer_weights_have_seven_bits_and_a_scale_a_column() -> None:
    weights = np.random.default_rng(1).standard_normal((64, 48)).astype(np.float32)
    weights[:, 5] = 0
    model = to_int8(one_layer(weights, None))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert tensors["layer.weight"].dtype == np.int8
    # Two products of neighbours must fit into 16 bits, on CPUs that add them there.
    assert 2 * 255 * int(np.abs(tensors["layer.weight"].astype(int)).max()) <= np.iinfo(np.int16).max
    assert tensors["layer.weight_scale"].shape == (48,)
    assert (tensors["layer.weight"][:, 5] == 0).all() and np.isfinite(tensors["layer.weight_scale"]).all()


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}])
def test_a_gemm_that_does_more_than_a_layer_is_left_alone(attributes: dict[str, Any]) -> None:
    weights = np.ones((64, 64), np.float32)
    model = one_layer(weights, np.ones(64, np.float32), **attributes)
    assert list(linear_layers(model)) == []
    assert to_int8(model).graph.node == model.graph.node


@pytest.mark.slow
def test_int8_and_fp16_are_smaller_and_take_the_same_tensors(lower: Bundle) -> None:
    sizes = {(graph.role, graph.precision): graph.file.bytes for graph in lower.manifest.graphs}
    assert set(sizes) == {
        ("encoder", "fp32"),
        ("decoder", "fp32"),
        ("decoder_image", "fp32"),
        ("decoder_prompts", "fp32"),
        ("encoder", "fp16"),
        ("decoder", "fp16"),
        ("encoder", "int8"),
    }
    assert sizes["encoder", "fp16"] < 0.6 * sizes["encoder", "fp32"]
    assert sizes["decoder", "fp16"] < 0.6 * sizes["decoder", "fp32"]
    assert sizes["encoder", "int8"] < 0.6 * sizes["encoder", "fp32"]

    def tensors(graph: Any) -> list[tuple[str, str, Any]]:
        session = ort.InferenceSession(str(lower.folder / graph.file.path), providers=["CPUExecutionProvider"])
        return [(each.name, each.type, each.shape) for each in [*session.get_inputs(), *session.get_outputs()]]

    for graph in lower.manifest.graphs:
        assert tensors(graph) == tensors(lower.graph(graph.role, "fp32"))
        onnx.checker.check_model(str(lower.folder / graph.file.path), full_check=True)


@pytest.mark.slow
def test_each_precision_has_an_embedding_id_of_its_own(lower: Bundle) -> None:
    assert len({lower.manifest.embedding_id(precision) for precision in OFFERED_PRECISIONS}) == 3


@pytest.mark.slow
def test_the_manifest_says_what_was_measured(lower: Bundle) -> None:
    for precision in ("fp16", "int8"):
        entry = variant(lower, precision)  # type: ignore[arg-type]
        assert entry["kept"] and entry["below_bar"] == []
        measured = entry["measured"]
        assert len(measured["pictures"]) == 6 and all("T1 template" in name for name in measured["pictures"])
        assert measured["masks"] == 6 * 10 * 4
        assert 0 < measured["embedding"] < 0.05
        assert 0 < measured["logits"] <= entry["bar"]["logits"]
        assert entry["bar"]["mean_dice"] <= measured["mean_dice"] <= 1
        assert measured["smallest_dice"] <= measured["low_dice"] <= 1
    # The integers are the coarser of the two.
    assert variant(lower, "int8")["measured"]["logits"] > variant(lower, "fp16")["measured"]["logits"]


@pytest.mark.slow
def test_what_was_measured_is_what_the_predictor_gives(lower: Bundle) -> None:
    slices = gate_slices([], lower.manifest.profile)
    found = []
    for precision in ("fp32", "int8"):
        predictor = Predictor(lower.folder, provider="cpu", precision=precision)  # type: ignore[arg-type]
        found.append([predictor.encode(each.pixels).features for each in slices])
    deviations = [np.sqrt(np.square(a - b).mean()) / a.std() for a, b in zip(*found, strict=True)]
    assert np.mean(deviations) == pytest.approx(variant(lower, "int8")["measured"]["embedding"], rel=0.02)


@pytest.mark.slow
def test_layer_norm_softmax_and_places_stay_float32_in_fp16(lower: Bundle) -> None:
    for role in ("encoder", "decoder"):
        model = onnx.load(lower.graph_path(role, "fp16"))  # type: ignore[arg-type]
        types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
        assert set(types.values()) == {TensorProto.FLOAT}
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
        types |= {value.name: value.type.tensor_type.elem_type for value in inferred}
        types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("LayerNormalization", "Softmax", "Sin", "Cos"):
                assert {types[name] for name in [*node.input, *node.output]} == {TensorProto.FLOAT}, node.name
            if node.op_type in ("Gemm", "Conv"):
                assert types[node.input[1]] == TensorProto.FLOAT16, node.name
        # A coordinate of 1000 in half precision would be half a pixel off.
        readers = [node.op_type for node in model.graph.node if "point_coords" in node.input]
        assert "Cast" not in readers


def test_numbers_too_large_for_half_precision_are_found_and_stay_float32(tmp_path: Path) -> None:
    value = make_tensor_value_info
    nodes = [
        make_node("Mul", ["x", "k"], ["large"], "mul"),
        make_node("Div", ["large", "k"], ["small"], "div"),
        make_node("Add", ["small", "one"], ["y"], "add"),
    ]
    tensors = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in (("k", 3e4), ("one", 1))]
    graph = make_graph(nodes, "g", [value("x", 1, [4])], [value("y", 1, [4])], initializer=tensors)
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "g.onnx")
    x = np.array([1, 2, 3, 4], np.float32)
    found = overflowing(tmp_path / "g.onnx", [{"x": x / 8}, {"x": x}])
    assert found == {"large": pytest.approx(1.2e5)}
    assert list(tmp_path.iterdir()) == [tmp_path / "g.onnx"]
    half = to_fp16(model, found)
    np.testing.assert_allclose(run(half, x=x), x + 1, rtol=1e-3)
    inferred = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(half).graph.value_info}
    types = {node.name: inferred.get(node.output[0], TensorProto.FLOAT) for node in half.graph.node}
    assert (types["mul"], types["div"], types["add"]) == (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16)


@pytest.mark.slow
def test_int8_alone_brings_the_float32_decoder_and_no_float32_encoder(tmp_path: Path, checkpoint: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "out", precisions=("int8",), verify="quick")
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "decoder.onnx",
        "decoder_image.onnx",
        "decoder_prompts.onnx",
        "encoder.int8.onnx",
        "manifest.json",
    ]
    bundle.verify()
    predictor = Predictor(bundle.folder, provider="cpu")
    image = picture((120, 90))
    assert predictor.predict(predictor.encode(image), boxes=[[10, 10, 60, 80]]).masks.shape == (1, 120, 90)


def harsh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that no integer arithmetic can reach."""
    monkeypatch.setitem(THRESHOLDS, "int8", dataclasses.replace(THRESHOLDS["int8"], logits=1e-9))


@pytest.mark.slow
def test_a_precision_below_its_bar_is_left_out_and_said_so(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harsh(monkeypatch)
    lines: list[str] = []
    bundle = export_bundle(
        checkpoint, tmp_path / "out", precisions=("fp32", "int8"), verify="quick", progress=lines.append
    )
    assert bundle.manifest.precisions("encoder") == ("fp32",)
    assert not (tmp_path / "out" / "encoder.int8.onnx").exists()
    entry = variant(bundle, "int8")
    assert entry["kept"] is False and entry["measured"]["logits"] > 0
    assert any("logits differ" in reason for reason in entry["below_bar"])
    assert any(line.startswith("int8 is below its threshold: logits differ") for line in lines)


@pytest.mark.slow
def test_force_keeps_it_and_the_manifest_still_says_so(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harsh(monkeypatch)
    bundle = export_bundle(checkpoint, tmp_path / "out", precisions=("fp32", "int8"), verify="quick", force=True)
    assert bundle.manifest.precisions("encoder") == ("fp32", "int8")
    assert variant(bundle, "int8")["kept"] and variant(bundle, "int8")["below_bar"]
    # By name only: `auto` never trades accuracy below the bar.
    assert Predictor(bundle.folder, provider="cpu").precision == "fp32"
    assert Predictor(bundle.folder, provider="cpu", precision="int8").precision == "int8"


@pytest.mark.slow
def test_nothing_is_written_when_no_precision_is_left(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harsh(monkeypatch)
    with pytest.raises(
        VerificationError, match=r"no requested precision reaches its threshold \(int8: logits differ .*nothing was"
    ):
        export_bundle(checkpoint, tmp_path / "out", precisions=("int8",), verify="quick")
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_below_every_bar() -> None:
    nan = float("nan")
    measured = PrecisionMeasurement(("a",), 4, 0, nan, nan, nan, nan, nan, nan, nan, nan, {})
    for precision in THRESHOLDS:
        assert len(PrecisionResult(precision, ("encoder",), False, measured).failures()) == 4


@pytest.mark.slow
def test_what_was_not_compared_is_kept_only_by_force(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="force"):
        export_bundle(checkpoint, tmp_path / "out", precisions=("int8",), verify="off")
    bundle = export_bundle(checkpoint, tmp_path / "out", precisions=("fp32", "int8"), verify="off", force=True)
    assert variant(bundle, "int8")["measured"] is None
    assert Predictor(bundle.folder, provider="cpu").precision == "fp32"
    result = CliRunner().invoke(
        main, ["-c", str(checkpoint), "-o", str(tmp_path / "two"), "--precision", "int8", "--verify", "off"]
    )
    assert result.exit_code == 2 and "--force" in result.stderr


@pytest.mark.slow
def test_a_compact_bundle_is_quantized_from_its_rounded_weights(tmp_path: Path, checkpoint: Path) -> None:
    bundle = export_bundle(checkpoint, tmp_path / "out", precisions=("fp32", "int8"), compact=True, verify="quick")
    assert variant(bundle, "int8")["kept"]
    model = onnx.load(bundle.graph_path("encoder", "int8"))
    assert sum(node.op_type == "MatMulInteger" for node in model.graph.node) == 17


@pytest.mark.slow
def test_own_scans_take_the_place_of_the_template(tmp_path: Path, checkpoint: Path) -> None:
    imsave(tmp_path / "Jane Doe.png", picture((140, 100)))
    bundle = export_bundle(
        checkpoint,
        tmp_path / "out",
        precisions=("fp32", "int8"),
        verify="quick",
        verify_images=[tmp_path / "Jane Doe.png"],
    )
    assert variant(bundle, "int8")["measured"]["pictures"] == ["own image 1"]
    assert "Jane" not in json.dumps(bundle.manifest.to_json())


def test_without_scans_and_template_there_is_nothing_to_judge_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gate_slices.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="--verify-image"):
        gate_slices([], profile("samri"))


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise OSError(28, "No space left on device", "encoder.int8.onnx")

    monkeypatch.setattr(_lower_precisions, "write_precision", full)
    with pytest.raises(OSError, match="No space"):
        export_bundle(checkpoint, tmp_path / "out", precisions=("fp32", "int8"), verify="quick")
    assert list(tmp_path.iterdir()) == []
