"""A torch module becomes an ONNX file: traced, simplified, checked, and many weights put beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnxsim
import torch
from onnx.external_data_helper import set_external_data
from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info
from torch import nn

from samri import __version__
from samri.contract import GraphSpec, TensorSpec
from samri.errors import VerificationError
from samri_export._bindings import beyond_bindings, split_concatenations

OPSET = 17

IR_VERSION = 8
"""The lowest that opset 17 allows, so that every ONNX Runtime which knows the opset reads the file."""

MOST_INSIDE = 64 << 20
"""Bytes of weights that still go into the .onnx file itself. A file of numbers beside it is mapped into memory, where
one inside is parsed and copied: ViT-B's encoder opens in half the time (docs/benchmarks.md, "Opening")."""

_SMALLEST_BESIDE = 1 << 10

_SIMPLIFIED_WEIGHTS = 1 << 20


def write_graph(module: nn.Module, spec: GraphSpec, path: Path, *, sizes: dict[str, int]) -> tuple[Path, ...]:
    """Write `module` to `path` as an ONNX graph with the names and free axes of `spec`.

    Args:
        module: In evaluation mode; takes and returns tensors in the order of `spec`.
        spec: Names and axes.
        path: The .onnx file.
        sizes: Sizes of the named axes to trace with; the graph takes any others too.

    Returns:
        The external files: none, or `path` with `.data` added, which holds weights of more than `MOST_INSIDE`.

    Raises:
        OSError: The disk is full.
    """
    _require_space(module, path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent) as traced:
        _trace(module, spec, Path(traced) / path.name, sizes)
        # One file a tensor lies in that folder when the model is over 2 GB.
        model = onnx.load(str(Path(traced) / path.name))
    simplified = _simplified(model, spec)
    split_concatenations(simplified.graph)
    return save_graph(simplified, path)


def save_graph(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Write a model to `path`, its weights beside it if they are over `MOST_INSIDE`; returns the external files.

    Raises:
        VerificationError: A node has more tensors than some programs can hold at once.
    """
    beyond = beyond_bindings(model.graph)
    if beyond is not None:
        raise VerificationError(f"{path.name}: {beyond}; nothing was written")
    external = path.with_name(f"{path.name}.data")
    beside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MOST_INSIDE
    if beside:
        hold_constants_as_weights(model.graph)
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) >= _SMALLEST_BESIDE:
                # What onnx offers for all tensors at once minds a file of that name in the working directory.
                set_external_data(tensor, external.name)
    onnx.save_model(model, str(path))
    if beside:
        external.chmod(path.stat().st_mode)  # onnx leaves it readable by its owner alone.
    onnx.checker.check_model(str(path), full_check=True)
    return (external,) if beside else ()


def hold_constants_as_weights(graph: onnx.GraphProto) -> None:
    """Make weights of a graph's large constants, in place: relative positions that the exporter looked up, say."""
    for node in list(graph.node):
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if node.op_type == "Constant" and values and len(values[0].raw_data) >= _SMALLEST_BESIDE:
            weights = graph.initializer.add()
            weights.CopyFrom(values[0])
            weights.name = node.output[0]
            graph.node.remove(node)


def _require_space(module: nn.Module, folder: Path) -> None:
    """Fail before minutes of tracing, and in Python: the exporter's own words for a full disk are no OSError."""
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    if shutil.disk_usage(folder).free < weights:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _trace(module: nn.Module, spec: GraphSpec, path: Path, sizes: dict[str, int]) -> None:
    with torch.no_grad(), _expected_deprecations():
        torch.onnx.export(
            module.eval(),
            _example(spec, sizes),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_axes=_named_axes(spec.inputs + spec.outputs),
        )


def _example(spec: GraphSpec, sizes: dict[str, int]) -> tuple[torch.Tensor, ...]:
    """Inputs to trace with, named axes having `sizes`. Ones are valid for all of them."""
    return tuple(
        torch.ones(
            [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes],
            dtype=torch.int64 if tensor.integer else torch.float32,
        )
        for tensor in spec.inputs
    )


def _named_axes(tensors: Sequence[TensorSpec]) -> dict[str, dict[int, str]]:
    """The axes of any size, as `torch.onnx.export` takes them."""
    named = {
        tensor.name: {index: axis for index, axis in enumerate(tensor.axes) if isinstance(axis, str)}
        for tensor in tensors
    }
    return {name: axes for name, axes in named.items() if axes}


@contextlib.contextmanager
def _expected_deprecations() -> Iterator[None]:
    """The two warnings that every use of the TorchScript exporter gives, and no other.

    Its successor needs a further package (onnxscript) and opset 18; until it is the better one, this is known.
    """
    with warnings.catch_warnings():
        for message in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
            warnings.filterwarnings("ignore", message=message, category=DeprecationWarning)
        yield


def _simplified(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """Fold and fuse with onnxsim, which sees the large weights as inputs.

    There is nothing in them to fold (the exporter did that), and so they are neither copied nor bounded by protobuf's
    2 GB on the way.
    """
    graph = model.graph
    large = [tensor for tensor in graph.initializer if len(tensor.raw_data) > _SIMPLIFIED_WEIGHTS]
    small = [tensor for tensor in graph.initializer if len(tensor.raw_data) <= _SIMPLIFIED_WEIGHTS]
    stand_ins = [make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    skeleton = make_graph(graph.node, spec.role, [*graph.input, *stand_ins], graph.output, small)
    simplified, _ = onnxsim.simplify(make_model(skeleton, opset_imports=model.opset_import, ir_version=IR_VERSION))
    used = {name for node in simplified.graph.node for name in node.input}
    return make_model(
        make_graph(
            simplified.graph.node,
            spec.role,
            [_value_info(tensor) for tensor in spec.inputs],
            [_value_info(tensor) for tensor in spec.outputs],
            [*simplified.graph.initializer, *(tensor for tensor in large if tensor.name in used)],
        ),
        opset_imports=[make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="samri",
        producer_version=__version__,
    )


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    element = onnx.TensorProto.INT64 if tensor.integer else onnx.TensorProto.FLOAT
    return make_tensor_value_info(tensor.name, element, tensor.axes)
