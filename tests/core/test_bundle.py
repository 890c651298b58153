from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from samri.bundle import Bundle, GraphFile, write_manifest
from samri.errors import BundleError
from samri.hashing import file_sha256
from samri.manifest import BundleFile, Graph, Manifest, embedding_id
from samri.preprocessing import profile


def manifest_of(*graphs: Graph) -> Manifest:
    return Manifest(
        name="small",
        backbone="vit-64x2",
        image_size=64,
        embedding_shape=(8, 4, 4),
        profile=profile("samri"),
        opset=17,
        graphs=graphs,
        checkpoint={"name": "small.pth", "sha256": "0" * 64},
        tools={"samri": "0"},
        verification={"mode": "off"},
    )


def write_graph(path: Path, *, external: str | None = None) -> None:
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if external is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=external)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights])
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small bundle with two graphs."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("encoder.onnx", "decoder.onnx"):
        write_graph(bundle / name)
    encoder = Graph("encoder", "fp32", BundleFile.of(bundle, "encoder.onnx"), embedding_id="e" * 32)
    decoder = Graph("decoder", "fp32", BundleFile.of(bundle, "decoder.onnx"))
    write_manifest(bundle, manifest_of(encoder, decoder))
    return bundle


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def refuses(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder).verify()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def test_a_whole_bundle_opens(folder: Path) -> None:
    bundle = Bundle.open(folder)
    bundle.verify()
    assert bundle.graph_path("encoder") == folder / "encoder.onnx"
    assert bundle.manifest.embedding_id() == "e" * 32
    assert bundle.manifest.embedding_id("int8") is None


def test_a_manifest_survives_json(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    assert Manifest.from_json(manifest.to_json(), "here") == manifest


def test_the_manifest_itself_may_be_named(folder: Path) -> None:
    assert Bundle.open(folder / "manifest.json").folder == folder


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_one_changed_byte_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    refuses(folder, name, "changed", "copy the bundle again")


def test_a_changed_byte_is_found_only_when_that_graph_is_opened(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes(b"x" * (folder / "encoder.onnx").stat().st_size)
    assert Bundle.open(folder).graph_path("decoder").is_file()


def test_a_cut_graph_is_found(folder: Path) -> None:
    (folder / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes()[:-3])
    refuses(folder, "encoder.onnx", "bytes")


def test_a_missing_graph_is_found(folder: Path) -> None:
    (folder / "decoder.onnx").unlink()
    refuses(folder, "decoder.onnx", "missing")


@pytest.mark.parametrize(
    "path",
    [
        "../decoder.onnx",
        "/etc/passwd",
        "a/../../b",
        "..",
        ".",
        "",
        "C:/x.onnx",
        "a\\b.onnx",
        "./encoder.onnx",
        "a//b",
        "a\0b",
        "x" * 5000,
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, path: str) -> None:
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    graphs[0]["path"] = path
    rewrite(folder, {"graphs": graphs})
    refuses(folder, "manifest.json", "inside the bundle")


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need a privilege on Windows")
def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    outside = folder.parent / "decoder.onnx"
    (folder / "decoder.onnx").rename(outside)
    (folder / "decoder.onnx").symlink_to(outside)
    refuses(folder, "decoder.onnx", "link")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "unlisted.data"])
def test_a_graph_that_would_open_a_file_of_its_own_is_refused(folder: Path, location: str) -> None:
    write_graph(folder / "encoder.onnx", external=location)
    encoder = Graph("encoder", "fp32", BundleFile.of(folder, "encoder.onnx"), embedding_id="e")
    write_manifest(folder, manifest_of(encoder))
    refuses(folder, "encoder.onnx", location)


@pytest.fixture
def with_weights_beside(folder: Path) -> Path:
    """The same bundle, its encoder's weights in a file of their own."""
    write_graph(folder / "encoder.onnx", external="encoder.onnx.data")
    (folder / "encoder.onnx.data").write_bytes(np.ones(4, np.float32).tobytes())
    external = (BundleFile.of(folder, "encoder.onnx.data"),)
    write_manifest(folder, manifest_of(Graph("encoder", "fp32", BundleFile.of(folder, "encoder.onnx"), external, "e")))
    return folder


def test_external_data_in_the_manifest_is_checked_like_a_graph(with_weights_beside: Path) -> None:
    Bundle.open(with_weights_beside).verify()
    (with_weights_beside / "encoder.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    refuses(with_weights_beside, "encoder.onnx.data", "changed")


def test_changed_weights_are_found_at_the_latest_when_the_graph_has_been_opened(with_weights_beside: Path) -> None:
    (with_weights_beside / "encoder.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    bundle = Bundle.open(with_weights_beside)
    for _ in range(2):  # What was found changed isn't taken for checked the second time.
        blocks = []
        with (
            pytest.raises(BundleError, match=r"encoder\.onnx\.data was changed"),
            bundle.verified_graph("encoder") as file,
        ):
            blocks.append(file.path)
        assert blocks == [with_weights_beside / "encoder.onnx"]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("changed graph", r"encoder\.onnx was changed"),
        ("cut weights", r"data has 15 bytes, not 16"),
        ("missing weights", r"data is missing"),
    ],
)
def test_all_but_the_weights_hash_is_checked_before_a_graph_is_opened(
    with_weights_beside: Path, damage: str, word: str
) -> None:
    graph, weights = with_weights_beside / "encoder.onnx", with_weights_beside / "encoder.onnx.data"
    if damage == "changed graph":
        graph.write_bytes(graph.read_bytes()[::-1])
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        weights.unlink()
    blocks = []
    with pytest.raises(BundleError, match=word), Bundle.open(with_weights_beside).verified_graph("encoder") as file:
        blocks.append(file)
    assert not blocks


def test_whatever_opening_fails_by_changed_weights_are_the_reason(with_weights_beside: Path) -> None:
    (with_weights_beside / "encoder.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    with (
        pytest.raises(BundleError, match=r"encoder\.onnx\.data was changed"),
        Bundle.open(with_weights_beside).verified_graph("encoder"),
    ):
        raise RuntimeError("no memory left")


def test_who_interrupts_the_opening_is_not_told_of_weights(with_weights_beside: Path) -> None:
    (with_weights_beside / "encoder.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    with pytest.raises(KeyboardInterrupt), Bundle.open(with_weights_beside).verified_graph("encoder"):
        raise KeyboardInterrupt


def test_a_graphs_hash_is_that_of_its_weights_too(with_weights_beside: Path) -> None:
    before = Bundle.open(with_weights_beside).graph("encoder")
    (with_weights_beside / "encoder.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    other = (BundleFile.of(with_weights_beside, "encoder.onnx.data"),)
    after = Graph("encoder", "fp32", BundleFile.of(with_weights_beside, "encoder.onnx"), other, "e")
    assert before.file.sha256 == after.file.sha256
    assert before.sha256 != after.sha256
    assert Graph("decoder", "fp32", before.file).sha256 == before.file.sha256


def test_a_failure_to_open_whole_files_stays_what_it_is(with_weights_beside: Path) -> None:
    bundle = Bundle.open(with_weights_beside)
    with pytest.raises(RuntimeError, match="no memory left"), bundle.verified_graph("encoder"):
        raise RuntimeError("no memory left")
    with bundle.verified_graph("encoder") as file:
        assert file.path.is_file()
        assert file.sha256() == bundle.graph("encoder").sha256
        assert GraphFile(file.path).sha256() == file.sha256()


def test_engines_of_changed_weights_are_never_filed_under_those_of_the_manifest(with_weights_beside: Path) -> None:
    (with_weights_beside / "encoder.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    named = []
    with (
        pytest.raises(BundleError, match=r"encoder\.onnx\.data was changed"),
        Bundle.open(with_weights_beside).verified_graph("encoder") as file,
    ):
        named.append(file.sha256())
    assert not named


def test_a_graph_is_hashed_once_however_often_it_is_opened(
    with_weights_beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("samri.bundle.file_sha256", counted)
    bundle = Bundle.open(with_weights_beside)
    for _ in range(3):
        with bundle.verified_graph("encoder") as file:
            file.sha256()
    assert sorted(hashed) == ["encoder.onnx", "encoder.onnx.data"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format_version": "2.0"}, "pip install -U samri"),
        ({"format_version": "new"}, "form 1.0"),
        ({"format": "other"}, "SAMRI bundle"),
        ({"image_size": 0}, "above 0"),
        ({"image_size": "64"}, "type int"),
        ({"image_size": True}, "type int"),
        ({"embedding_shape": [8, 4]}, "grid"),
        ({"embedding_shape": [8, 4, 5]}, "grid"),
        ({"name": None}, "missing"),
        ({"profile": {"name": "x"}}, "unknown preprocessing profile"),
        ({"graphs": [{"role": "encoder"}]}, "precision"),
        ({"graphs": [{"role": 5, "precision": "fp32"}]}, "role"),
        ({"profile": {"name": []}}, "unknown preprocessing profile"),
        ({"graphs": {}}, "type list"),
        ({"graphs": [7]}, "JSON object"),
    ],
)
def test_a_manifest_that_cannot_be_is_named(folder: Path, change: dict[str, Any], word: str) -> None:
    rewrite(folder, change)
    refuses(folder, "manifest.json", word)


def test_a_newer_minor_version_with_new_keys_opens(folder: Path) -> None:
    rewrite(folder, {"format_version": "1.7", "colour": "blue"})
    Bundle.open(folder).verify()


def test_a_role_or_precision_of_a_newer_minor_version_is_left_out(folder: Path) -> None:
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    newer = [graphs[0] | {"role": "prompt_encoder"}, graphs[1] | {"precision": "int4"}]
    rewrite(folder, {"format_version": "1.1", "graphs": [*graphs, *newer]})
    assert len(Bundle.open(folder).manifest.graphs) == 2


def test_a_graph_that_is_no_onnx_file_is_refused(folder: Path) -> None:
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    graphs[0]["path"] = "manifest.json"
    rewrite(folder, {"graphs": graphs})
    refuses(folder, "manifest.json", ".onnx")


def test_the_same_graph_twice_is_refused(folder: Path) -> None:
    graphs = json.loads((folder / "manifest.json").read_text())["graphs"]
    rewrite(folder, {"graphs": [graphs[0], graphs[0]]})
    refuses(folder, "same role")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refuses(folder, "manifest.json")


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_manifest_or_a_plain_error(values: Any) -> None:
    for text in (json.dumps(values), json.dumps({"format": "samri-bundle", "format_version": "1.0", "graphs": values})):
        with pytest.raises(BundleError) as caught:
            Manifest.from_json(text, "manifest.json")
        assert str(caught.value).startswith("manifest.json")


def test_the_expected_hash_vouches_for_the_bundle(folder: Path) -> None:
    sha256 = Bundle.open(folder).sha256
    assert Bundle.open(folder, expect_sha256=sha256.upper()).sha256 == sha256
    with pytest.raises(BundleError, match="another bundle"):
        Bundle.open(folder, expect_sha256="0" * 64)


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.safetensors"])
def test_a_checkpoint_given_for_a_bundle_points_to_the_export(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"samri-export --checkpoint .*{name} --output"):
        Bundle.open(tmp_path / name)


def test_what_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="too long"):
        Bundle.open(tmp_path / ("x" * 300))
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="folder"):
        Bundle.open(tmp_path / "x.onnx")


def test_a_missing_precision_names_what_there_is(folder: Path) -> None:
    with pytest.raises(BundleError, match="decoder fp32"):
        Bundle.open(folder).graph("decoder", "int8")


def test_the_embedding_id_depends_on_all_that_decides_an_embedding() -> None:
    ids = {
        embedding_id("a" * 64, profile("samri"), 1024, "fp32"),
        embedding_id("b" * 64, profile("samri"), 1024, "fp32"),
        embedding_id("a" * 64, profile("medsam"), 1024, "fp32"),
        embedding_id("a" * 64, profile("samri"), 512, "fp32"),
        embedding_id("a" * 64, profile("samri"), 1024, "int8"),
    }
    assert len(ids) == 5
    assert embedding_id("a" * 64, profile("samri"), 1024, "fp32") in ids


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(bundle: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match="is a named pipe"):
        Bundle.open(folder).verify()


def test_a_manifest_of_absurd_size_is_not_read(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    os.truncate(folder / "manifest.json", 1 << 32)
    with pytest.raises(BundleError, match="has 4294967296 bytes"):
        Bundle.open(folder)


@pytest.mark.parametrize("key", ["format", "format_version", "embedding_shape", "image_size"])
@pytest.mark.parametrize("value", ["\x1b[2J\u202e" + "x" * 5000, [["\x1b" * 5000]]], ids=["text", "list"])
def test_no_control_character_of_a_manifest_gets_into_a_message(
    bundle: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 500
