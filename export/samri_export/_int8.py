"""Linear layers in 8-bit integers: four times smaller weights, and products that CPUs compute several times faster.

A layer y = x W + b, with W of shape (in, out), becomes

    y = (xq - zero) Wq * (scale_x scale_W) + b

with Wq = round(W / scale_W) in int8, one scale for each output channel (column), and xq = x / scale_x in uint8, whose
one scale and zero point are found from each x as it comes (`DynamicQuantizeLinear`). These are ONNX's own operators;
ONNX Runtime fuses the six of a layer into one. All else, attention and normalisation above all, stays float32. Its
large constants, such as position embeddings, are stored in half precision, which loses far less than the integers do.

Columns use 7 bits (-64 to 64) rather than 8: the kernels of CPUs without VNNI add pairs of products in 16 bits, which 8
bits overflow silently. So masks are the same on every CPU; what it costs in accuracy is in docs/precision.md.

ONNX Runtime's own `quantize_dynamic` (`per_channel`, `reduce_range`, release 1.32) makes the same operators, and isn't
used for two reasons. It also puts the tables of relative positions into integers (on ViT-B 73 integer products instead
of 49), whose errors reach every attention score: on a phantom, the embedding of the tests' small SAM moves by 2.0 % of
its standard deviation instead of 1.5 %. And it leaves the large constants in float32: ViT-B's encoder has 102.6 MB
instead of 100.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.helper import get_attribute_value, make_attribute, make_node

LARGEST_WEIGHT = 64
"""A product of two such pairs, 2 * 255 * 64, still fits 16 bits."""

_SMALLEST_LAYER = 1 << 10
"""Values in a matrix below which a layer takes no time and no space worth saving."""

_SMALLEST_HALF = 1 << 16
"""Values in another constant from which on it is stored in half precision."""

Floats = npt.NDArray[np.float32]


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float32 graph whose linear layers compute in 8-bit integers.

    Args:
        model: `Gemm` and `MatMul` nodes with a constant matrix on the right are its linear layers.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = {node.name for node in linear_layers(model)}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.node[:], graph.initializer[:]
    for node in model.graph.node:
        if node.name not in layers:
            graph.node.append(node)
            continue
        matrix = numpy_helper.to_array(weights[node.input[1]])
        nodes, tensors = _integer_layer(node, matrix.T if _transposed(node) else matrix)
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
    used = {name for node in graph.node for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in used:
            continue
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _SMALLEST_HALF:
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half")
            casts.append(make_node("Cast", [half.name], [tensor.name], f"{tensor.name}.cast", to=TensorProto.FLOAT))
            tensor = half
        graph.initializer.append(tensor)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def linear_layers(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """The nodes that are y = x W + b, b or none, with a constant W that is worth it."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        shape = sizes.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if shape is not None and len(shape) == 2 and np.prod(shape) >= _SMALLEST_LAYER and _is_plain(node):
            yield node


def _is_plain(node: NodeProto) -> bool:
    """Whether a `Gemm` neither scales nor transposes its left side; a `MatMul` never does."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    attributes = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
    return all(attributes.get(name, value) == value for name, value in plain.items())


def _transposed(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _integer_layer(node: NodeProto, matrix: Floats) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes and constants that stand for one linear layer, in the pattern that ONNX Runtime fuses."""
    layer = node.name or node.output[0]
    scale = np.abs(matrix).max(axis=0) / LARGEST_WEIGHT
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    integers = np.rint(matrix / scale).astype(np.int8)
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(integers), f"{layer}.weight"),
        numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{layer}.weight_zero"),
        numpy_helper.from_array(scale, f"{layer}.weight_scale"),
    ]
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    product = f"{layer}.product" if bias else node.output[0]
    steps: list[tuple[str, list[str], list[str]]] = [
        ("DynamicQuantizeLinear", [node.input[0]], [f"{layer}.x", f"{layer}.x_scale", f"{layer}.x_zero"]),
        (
            "MatMulInteger",
            [f"{layer}.x", f"{layer}.weight", f"{layer}.x_zero", f"{layer}.weight_zero"],
            [f"{layer}.sum"],
        ),
        ("Mul", [f"{layer}.x_scale", f"{layer}.weight_scale"], [f"{layer}.scale"]),
        ("Cast", [f"{layer}.sum"], [f"{layer}.float"]),
        ("Mul", [f"{layer}.float", f"{layer}.scale"], [product]),
    ]
    if bias:
        steps.append(("Add", [product, bias], [node.output[0]]))
    nodes = [
        make_node(kind, inputs, outputs, f"{layer}.{number}") for number, (kind, inputs, outputs) in enumerate(steps)
    ]
    nodes[3].attribute.append(make_attribute("to", TensorProto.FLOAT))
    return nodes, tensors
