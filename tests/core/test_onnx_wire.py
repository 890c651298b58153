from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from samri.errors import BundleError
from samri.onnx_wire import external_locations


def external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def identity_graph(*initializers: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
    return helper.make_graph(
        [*(nodes or []), helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y], [*initializers]
    )


def save(path: Path, graph: onnx.GraphProto, **extra: object) -> Path:
    path.write_bytes(helper.make_model(graph, **extra).SerializeToString())
    return path


def test_every_place_a_tensor_can_hide_is_found(tmp_path: Path) -> None:
    inner = identity_graph(external("w", "in_subgraph"))
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=identity_graph())
    constant = helper.make_node("Constant", [], ["k"], value=external("k", "in_attribute"))
    listed = onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS)
    listed.tensors.append(external("t", "in_attribute_list"))
    branch.attribute.append(listed)
    function = helper.make_function(
        "local", "f", ["x"], ["k"], [constant_of("in_function")], [helper.make_opsetid("", 17)]
    )
    graph = identity_graph(external("a", "in_initializer"), nodes=[branch, constant])
    sparse = onnx.SparseTensorProto(
        values=external("v", "in_sparse"), indices=external("i", "in_sparse_index"), dims=[4]
    )
    graph.sparse_initializer.append(sparse)
    path = save(tmp_path / "m.onnx", graph, functions=[function])
    assert external_locations(path) == {
        "in_subgraph",
        "in_attribute",
        "in_attribute_list",
        "in_function",
        "in_initializer",
        "in_sparse",
        "in_sparse_index",
    }


def constant_of(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["k"], value=external("k", location))


# The tag of `external_data` (field 13, length-delimited) is one byte, 0x6A; each of these is another way to write it,
# or to hide what follows, that some reader of protobuf forgives.
EVASIONS = {
    "padded": b"\xea\x00",
    "bits above 32": b"\xea\x80\x80\x80\x10",
    "field number above 2^29": b"\xea\x80\x80\x80\x80\x01",
}


@pytest.mark.parametrize("tag", EVASIONS.values(), ids=EVASIONS.keys())
def test_a_tag_that_no_writer_produces_is_refused(tmp_path: Path, tag: bytes) -> None:
    tensor = external("a", "../secret")
    entries = b"".join(tag + bytes([len(raw)]) + raw for raw in (e.SerializeToString() for e in tensor.external_data))
    tensor.ClearField("external_data")
    hidden = tensor.SerializeToString() + entries
    graph = identity_graph().SerializeToString() + b"\x2a" + varint(len(hidden)) + hidden
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + varint(len(graph)) + graph)
    with pytest.raises(BundleError, match="not an ONNX graph"):
        external_locations(path)


def varint(number: int) -> bytes:
    """Protobuf's shortest form."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def test_the_same_bytes_with_the_plain_tag_are_seen(tmp_path: Path) -> None:
    hidden = external("a", "../secret").SerializeToString()
    graph = identity_graph().SerializeToString() + b"\x2a" + varint(len(hidden)) + hidden
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a" + varint(len(graph)) + graph)
    assert external_locations(path) == {"../secret"}


@pytest.mark.parametrize(
    "tail", [b"\x3a\x85\x00", b"\x3a\x80\x80\x80\x80\x10", b"\x02\x00", b"\x3a\x7f", b"\x3b\x3c", b"\x39"]
)
def test_a_broken_field_at_the_end_is_refused(tmp_path: Path, tail: bytes) -> None:
    path = save(tmp_path / "m.onnx", identity_graph())
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(BundleError):
        external_locations(path)


def test_a_graph_with_its_weights_inside_refers_to_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", identity_graph(numpy_helper.from_array(np.ones(1000, np.float32), "w")))
    assert external_locations(path) == set()


@given(cut=st.integers(1, 400), data=st.data())
def test_a_cut_file_is_refused_or_gives_what_is_left_of_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, data: st.DataObject
) -> None:
    whole = helper.make_model(identity_graph(external("a", "weights.data"))).SerializeToString()
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    path.write_bytes(whole[: max(1, len(whole) - cut)])
    try:
        assert external_locations(path) <= {"weights.data"}
    except BundleError as error:
        assert str(path) in str(error)


@given(st.binary(min_size=0, max_size=200))
def test_any_bytes_end_in_an_answer_or_a_plain_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    try:
        external_locations(path)
    except BundleError as error:
        assert "\n" not in str(error)
