"""Half precision for GPUs: half the size, and arithmetic that their matrix units do several times faster.

Inputs and outputs stay float32, and so does what half precision can't hold: LayerNorm and softmax; everything up to a
sine or cosine, whose argument is a place in the image to a fraction of a pixel; and whatever came out larger, on real
slices, than a quarter of half precision's largest number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info

from samri_runtime.providers import load_onnxruntime

LARGEST = 65504.0
"""Half precision's largest number."""

_MARGIN = 4.0
_FLOAT32_OPERATORS = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")
_LARGE_WEIGHT = 1 << 20  # Bytes.

Feeds = Mapping[str, npt.NDArray[np.float32]]


def to_fp16(model: onnx.ModelProto, too_large: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a float32 graph in half precision.

    Args:
        model: The graph; its nodes have names.
        too_large: Names of the tensors that half precision can't hold, from `overflowing`.

    Raises:
        MissingDependencyError: ONNX Runtime, whose wheel holds the converter, isn't installed.
    """
    load_onnxruntime()  # Says how to install it, where it's missing.
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Types have to be known; inference on the whole would serialise more than protobuf's 2 GB for the largest models.
    copy.graph.value_info.extend(_inferred(model).values())
    float32_nodes = {node.name for node in _leading_to(("Sin", "Cos"), model.graph.node)}
    float32_nodes |= {node.name for node in model.graph.node if {*node.input, *node.output} & set(too_large)}
    half: onnx.ModelProto = convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT32_OPERATORS],
        node_block_list=sorted(float32_nodes),
    )
    del half.graph.value_info[:]
    original_nodes = {node.name for node in model.graph.node}
    nodes = _in_order(_without_round_trips(half.graph.node, original_nodes), half)
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half


def overflowing(path: Path, runs: Iterable[Feeds]) -> dict[str, float]:
    """The tensors of a float32 graph that come too near to half precision's largest number, and how large they are.

    Args:
        path: The graph.
        runs: Inputs to try: real slices, or prompts on them.

    Raises:
        MissingDependencyError: ONNX Runtime isn't installed.
    """
    largest: dict[str, float] = {}
    for values in _largest_values(path, runs):
        for name, value in values.items():
            largest[name] = max(value, largest.get(name, 0.0))
    # Not a number is beyond any limit.
    return {name: value for name, value in largest.items() if not value * _MARGIN <= LARGEST}


def _largest_values(path: Path, runs: Iterable[Feeds]) -> Iterable[dict[str, float]]:
    """For each run, the largest absolute value of every float tensor that a node of the graph computes."""
    model = onnx.load(str(path))
    constants = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    floats = [
        name
        for name, value in _inferred(model).items()
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and name not in constants
    ]
    outputs = []
    for number, name in enumerate(floats):
        model.graph.node.append(make_node("Abs", [name], [f"samri.abs.{number}"]))
        model.graph.node.append(make_node("ReduceMax", [f"samri.abs.{number}"], [f"samri.max.{number}"], keepdims=0))
        outputs.append(make_tensor_value_info(f"samri.max.{number}", TensorProto.FLOAT, []))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnxruntime = load_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    measured = path.with_name(f"{path.name}.measured")
    try:
        onnx.save_model(model, str(measured))
        session = onnxruntime.InferenceSession(str(measured), settings, providers=["CPUExecutionProvider"])
        for feeds in runs:
            values: Sequence[npt.NDArray[np.float32]] = session.run(None, dict(feeds))
            yield {name: float(value) for name, value in zip(floats, values, strict=True)}
    finally:
        measured.unlink(missing_ok=True)


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Type and shape of every tensor that a node computes, found without looking at large weights."""
    graph = model.graph
    large = [tensor for tensor in graph.initializer if len(tensor.raw_data) > _LARGE_WEIGHT]
    small = [tensor for tensor in graph.initializer if len(tensor.raw_data) <= _LARGE_WEIGHT]
    stand_ins = [make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    skeleton = make_graph(graph.node, graph.name, [*graph.input, *stand_ins], graph.output, small)
    opsets = model.opset_import
    inferred = onnx.shape_inference.infer_shapes(make_model(skeleton, opset_imports=opsets), data_prop=True)
    computed = {name for node in graph.node for name in node.output}
    return {value.name: value for value in inferred.graph.value_info if value.name in computed}


def _leading_to(kinds: Collection[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes of those kinds, and all that compute what they need."""
    tensors: set[str] = set()
    nodes_before = []
    for node in reversed(nodes):  # A graph's nodes stand in order of computation.
        if node.op_type in kinds or tensors & set(node.output):
            tensors |= set(node.input)
            nodes_before.append(node)
    return nodes_before


def _without_round_trips(nodes: Sequence[NodeProto], original_nodes: Collection[str]) -> list[NodeProto]:
    """Float32 nodes that follow each other needn't round in between, least of all the coordinates that come in.

    The graph's own nodes, `original_nodes`, which may cast integers, stay.
    """
    added = [node for node in nodes if node.op_type == "Cast" and node.name not in original_nodes]
    rounded = {node.output[0]: node.input[0] for node in added if _casts_to(node, TensorProto.FLOAT16)}
    restored = {
        node.output[0]: rounded[node.input[0]]
        for node in added
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in rounded
    }
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = restored.get(name, name)
    return [node for node in nodes if node.output[0] not in restored]


def _casts_to(node: NodeProto, kind: int) -> bool:
    return bool(node.attribute[0].i == kind)


def _in_order(nodes: Sequence[NodeProto], model: onnx.ModelProto) -> list[NodeProto]:
    """Sorted so that each node comes after those whose results it takes; casts were added at the end."""
    makers = {name: node for node in nodes for name in node.output}
    outputs = [value.name for value in model.graph.output]
    ordered: dict[int, NodeProto] = {}
    pending = [makers[name] for name in reversed(outputs)]
    while pending:
        node = pending[-1]
        missing = [makers[name] for name in node.input if name in makers and id(makers[name]) not in ordered]
        if missing:
            pending.extend(missing)
        else:
            ordered.setdefault(id(node), pending.pop())
    return list(ordered.values())
