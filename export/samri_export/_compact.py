"""Compact bundles: weights rounded to half precision and stored so, computed with as float32.

Rounding comes first, before anything is exported or compared, so that storing loses nothing: a stored weight is a
half-precision number followed by a `Cast` to float32, which ONNX Runtime folds when it opens the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from onnx.helper import make_node

from samri.errors import CheckpointError, OutputError
from samri.hashing import file_sha256
from samri.manifest import BundleFile, Graph
from samri.model import Checkpoint
from samri.staging import staged_file
from samri_export._onnx_writing import save_graph
from samri_export._replacing import check_rounded_checkpoint

ROUNDED_TO = "fp16"
"""Value of `checkpoint.rounded_to` in a compact bundle's manifest."""

_FEWEST_VALUES = 256
"""A smaller tensor isn't worth a node of its own."""


def round_weights(source: Checkpoint) -> None:
    """Round every weight of the model, in place, to the nearest number that half precision holds.

    Raises:
        CheckpointError: A weight is beyond half precision's largest number, 65504.
    """
    for name, weights in source.sam.state_dict().items():
        rounded = weights.half().float()
        if not bool(torch.isfinite(rounded).all()):
            largest = float(weights.abs().max())
            raise CheckpointError(
                f"{source.path}: {name} holds {largest:g}, beyond half precision's limit of 65504: leave out --compact"
            )
        weights.copy_(rounded)


@contextlib.contextmanager
def staged_checkpoint(
    path: Path | None, *, outside: Path, overwrite: bool
) -> Iterator[Callable[[Checkpoint], dict[str, str]]]:
    """Yield what keeps the rounded weights as an ordinary checkpoint, in half precision, if `path` is given.

    It returns the file's name and hash for the manifest. The file appears at `path` when all else has been done.

    Raises:
        OutputError: `path` exists and isn't to be overwritten, lies in the folder `outside`, or can't be written.
    """
    if path is None:
        yield lambda source: {}
        return
    if outside.resolve() in path.resolve().parents:
        raise OutputError(f"{path} would lie inside the bundle, which holds no checkpoint: name a file elsewhere")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists: name another file, or pass --overwrite to replace it")
    if path.exists():
        check_rounded_checkpoint(path, outside)
    with staged_file(path) as stage:

        def save(source: Checkpoint) -> dict[str, str]:
            torch.save({name: weights.half() for name, weights in source.sam.state_dict().items()}, stage)
            return {"rounded_name": path.name, "rounded_sha256": file_sha256(stage)}

        yield save


def stored_in_half(folder: Path, graph: Graph) -> Graph:
    """Rewrite a graph's file so that every tensor which half precision holds exactly is stored in it.

    What the exporter computed from several weights isn't among them, and stays as it is: results don't change in a bit.

    Returns:
        The graph with its new size and hash.
    """
    path = folder / graph.file.path
    model = onnx.load(str(path))
    _store_in_half(model.graph)
    for file in (graph.file, *graph.external_data):
        (folder / file.path).unlink()
    external = save_graph(model, path)
    return Graph(
        graph.role,
        graph.precision,
        BundleFile.of(folder, graph.file.path),
        tuple(BundleFile.of(folder, file.relative_to(folder).as_posix()) for file in external),
        embedding_id=graph.embedding_id,
    )


def stored_in_full(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with plain float32 weights, for code that reads weights; unchanged if it isn't compact."""
    halves = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name.endswith(f".{ROUNDED_TO}")}
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in halves}
    full = [
        numpy_helper.from_array(numpy_helper.to_array(halves[cast.input[0]]).astype(np.float32), name)
        for name, cast in casts.items()
    ]
    nodes = [node for node in model.graph.node if node.output[0] not in casts]
    initializers = [tensor for tensor in model.graph.initializer if tensor.name not in halves]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*initializers, *full])
    model.graph.node.extend(nodes)
    return model


def _store_in_half(graph: onnx.GraphProto) -> None:
    casts, initializers = [], []
    for tensor in graph.initializer:
        half = _exact_half(tensor)
        if half is None:
            initializers.append(tensor)
            continue
        stored = numpy_helper.from_array(half, f"{tensor.name}.{ROUNDED_TO}")
        casts.append(make_node("Cast", [stored.name], [tensor.name], f"{tensor.name}.cast", to=onnx.TensorProto.FLOAT))
        initializers.append(stored)
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)


def _exact_half(tensor: onnx.TensorProto) -> npt.NDArray[np.float16] | None:
    """The tensor in half precision, if it is a large float32 one that comes back from there bit by bit."""
    if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _FEWEST_VALUES:
        return None
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    same = half.astype(np.float32).view(np.uint32) == values.view(np.uint32)
    return half if bool(same.all()) else None
