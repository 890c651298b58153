"""No node of a graph has more tensors than WebGPU holds at once; values stay the same to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from samri.bundle import Bundle
from samri.errors import VerificationError
from samri_export._bindings import MOST_TENSORS, beyond_bindings, split_concatenations
from samri_export._onnx_writing import save_graph
from samri_runtime import models


def joined(parts: int) -> onnx.ModelProto:
    """A graph that joins so many slices of its input again, each times another number."""
    nodes, names = [], []
    weights = []
    for part in range(parts):
        weights.append(onnx.numpy_helper.from_array(np.float32([part + 1.5]), f"w{part}"))
        nodes.append(make_node("Mul", ["x", f"w{part}"], [f"y{part}"], f"mul{part}"))
        names.append(f"y{part}")
    nodes.append(make_node("Concat", names, ["out"], "join", axis=1))
    graph = make_graph(
        nodes,
        "joined",
        [make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3 * parts])],
        weights,
    )
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("parts", [2, 7, 8, 9, 16, 33, 64])
def test_concatenations_become_trees_of_the_same_values(parts: int) -> None:
    model = joined(parts)
    expected = run(model)
    assert (beyond_bindings(model.graph) is None) == (parts < MOST_TENSORS)
    split_concatenations(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert beyond_bindings(model.graph) is None
    assert run(model).tobytes() == expected.tobytes()


def test_a_graph_with_a_node_of_too_many_tensors_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"wide\.onnx: Concat join has 9 tensors, and WebGPU holds 8"):
        save_graph(joined(8), tmp_path / "wide.onnx")
    assert list(tmp_path.iterdir()) == []


def test_no_node_of_an_exported_graph_has_more(contract_bundle: Bundle) -> None:
    for graph in contract_bundle.manifest.graphs:
        model = onnx.load(contract_bundle.graph_path(graph.role))
        assert max(len(node.input) + len(node.output) for node in model.graph.node) <= MOST_TENSORS


def test_no_node_of_the_shipped_graphs_has_more() -> None:
    for path in models.find("samri-tiny").glob("*.onnx"):
        assert beyond_bindings(onnx.load(path).graph) is None, path.name
