"""A tiny ONNX graph that shows whether a provider works: one convolution and one matrix product, as in SAM.

Written byte by byte, since the onnx package isn't a dependency here (the tests compare it with what onnx builds). A
convolution needs cuDNN, a product cuBLAS: what is missing shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE = 16
_FLOAT = 1  # TensorProto.FLOAT, and AttributeProto.FLOAT
_INTS = 7  # AttributeProto.INTS
_IR_VERSION, _OPSET = 8, 17


def probe_feeds() -> dict[str, NDArray[np.float32]]:
    """The input: `x` float32 (1, 1, 16, 16)."""
    values = np.linspace(-1, 1, _SIDE * _SIDE, dtype=np.float32)
    return {"x": (2 + np.sin(7 * values)).reshape(1, 1, _SIDE, _SIDE)}


def probe_result() -> NDArray[np.float64]:
    """The graph's correct output for `probe_feeds()`, computed in double precision: (1, 1, 16, 16)."""
    kernel, matrix = (weights.astype(np.float64) for weights in _weights())
    padded = np.pad(probe_feeds()["x"][0, 0].astype(np.float64), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    result: NDArray[np.float64] = (np.einsum("yxij,ij->yx", windows, kernel[0, 0]) @ matrix)[None, None]
    return result


def _weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    # All above zero, so that nothing cancels and half precision differs by little.
    kernel = 2 + np.cos(np.arange(9, dtype=np.float32)).reshape(1, 1, 3, 3)
    matrix = 2 + np.cos(np.arange(_SIDE * _SIDE, dtype=np.float32)).reshape(_SIDE, _SIDE)
    return kernel, matrix


# Protocol buffers: a field is its number and kind, then a number or the length of the bytes that follow. The field
# numbers are those of onnx.proto.


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, _FLOAT) + _field(8, name) + _field(9, values.astype("<f4").tobytes())


def _value(name: str) -> bytes:
    shape = b"".join(_field(1, _field(1, size)) for size in (1, 1, _SIDE, _SIDE))
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _node(kind: str, inputs: list[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name) for name in inputs)
    return names + _field(2, output) + _field(3, output) + _field(4, kind) + attributes


def _probe() -> bytes:
    kernel, matrix = _weights()
    pads = _field(1, "pads") + b"".join(_field(8, pad) for pad in (1, 1, 1, 1)) + _field(20, _INTS)
    graph = (
        _field(1, _node("Conv", ["x", "kernel"], "filtered", _field(5, pads)))
        + _field(1, _node("MatMul", ["filtered", "matrix"], "y"))
        + _field(2, "probe")
        + _field(5, _tensor("kernel", kernel))
        + _field(5, _tensor("matrix", matrix))
        + _field(11, _value("x"))
        + _field(12, _value("y"))
    )
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(2, _OPSET))


PROBE = _probe()
