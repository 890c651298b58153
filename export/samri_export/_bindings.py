"""How many tensors a node may have, so that every program that runs the graphs can hold them at once.

WebGPU promises eight storage buffers in a shader. ONNX Runtime's older WebGPU provider takes one for each input and
output of a node, and where there are more it continues with wrong numbers and no error.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import NodeProto
from onnx.helper import make_node

MOST_TENSORS = 8
"""Inputs and outputs of a node together."""

_JOINED_AT_ONCE = 4


def split_concatenations(graph: onnx.GraphProto) -> None:
    """Make a tree of every `Concat` with too many inputs, in place; values and their order stay.

    Here and not in the model, since onnxsim joins what follows each other again.
    """
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Concat" and _tensors(node) > MOST_TENSORS:
            nodes += _tree(node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def beyond_bindings(graph: onnx.GraphProto) -> str | None:
    """The first node with more tensors than `MOST_TENSORS`, in words; None if there is none."""
    for node in graph.node:
        if _tensors(node) > MOST_TENSORS:
            return f"{node.op_type} {node.name} has {_tensors(node)} tensors, and WebGPU holds {MOST_TENSORS}"
    return None


def _tensors(node: NodeProto) -> int:
    return sum(name != "" for name in (*node.input, *node.output))


def _tree(node: NodeProto) -> list[NodeProto]:
    (axis,) = (attribute.i for attribute in node.attribute if attribute.name == "axis")
    nodes: list[NodeProto] = []
    parts: Sequence[str] = node.input
    while len(parts) > _JOINED_AT_ONCE:
        joined = []
        for start in range(0, len(parts), _JOINED_AT_ONCE):
            some = parts[start : start + _JOINED_AT_ONCE]
            if len(some) == 1:
                joined.append(some[0])
                continue
            name = f"{node.output[0]}.part{len(nodes)}"
            nodes.append(make_node("Concat", some, [name], f"{node.name}.part{len(nodes)}", axis=axis))
            joined.append(name)
        parts = joined
    return [*nodes, make_node("Concat", parts, node.output, node.name, axis=axis)]
