"""Compact bundles: rounding is the only thing that changes a number, and storing in half changes none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from onnx.helper import make_graph, make_node, make_tensor_value_info
from segment_anything.modeling import Sam

from samri.bundle import Bundle
from samri.errors import CheckpointError, OutputError
from samri.hashing import file_sha256
from samri_export import _compact, _onnx_writing, export_bundle
from samri_export.command import main
from tests.support.sams import save_checkpoint


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Bundle:
    """`checkpoint` as a verified compact bundle, its rounded weights beside it in `rounded.pth`."""
    folder = tmp_path_factory.mktemp("compact")
    kept = folder / "rounded.pth"
    return export_bundle(
        checkpoint, folder / "compact", contracts=("sam-multi",), verify="quick", compact=True, rounded_checkpoint=kept
    )


@pytest.fixture(scope="module")
def plain(compact: Bundle) -> Bundle:
    """The rounded weights in an ordinary bundle."""
    folder = compact.folder.parent
    return export_bundle(folder / "rounded.pth", folder / "plain", contracts=("sam-multi",), verify="off")


def inputs_of(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    """Values that are valid for every input, the free axes being 3."""
    random = np.random.default_rng(5)
    feeds = {}
    for tensor in session.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in tensor.shape]
        if tensor.name == "point_labels":
            feeds[tensor.name] = random.integers(-2, 4, shape).astype(np.float32)
        elif tensor.name == "orig_im_size":
            feeds[tensor.name] = np.array([90, 70], np.float32)
        elif tensor.name == "has_mask_input":
            feeds[tensor.name] = np.arange(shape[0], dtype=np.float32)
        else:
            scale = 100 if tensor.name == "point_coords" else 1
            feeds[tensor.name] = (scale * random.random(shape)).astype(np.float32)
    return feeds


def session(path: Path, level: ort.GraphOptimizationLevel, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answers(bundle: Bundle, role: str, level: ort.GraphOptimizationLevel) -> list[np.ndarray]:
    opened = session(bundle.graph_path(role), level)
    return opened.run(None, inputs_of(opened))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_ENABLE_BASIC"])
@pytest.mark.parametrize("role", ["encoder", "decoder", "decoder_sam_multi"])
def test_results_are_those_of_the_rounded_weights_bit_for_bit(
    role: str, level: str, compact: Bundle, plain: Bundle
) -> None:
    ours, theirs = (answers(bundle, role, getattr(ort.GraphOptimizationLevel, level)) for bundle in (compact, plain))
    assert [result.tobytes() for result in ours] == [result.tobytes() for result in theirs]
    assert all(np.isfinite(result).all() and np.ptp(result) > 0.01 for result in ours)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_host_that_optimizes_nothing_gets_them_too(role: str, compact: Bundle, plain: Bundle) -> None:
    # Without folding, the weights are no constants to ONNX Runtime: it adds products up in another order.
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for ours, theirs in zip(answers(compact, role, level), answers(plain, role, level), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.ptp(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_onnx_runtime_folds_the_casts_when_it_opens_the_graph(role: str, compact: Bundle, tmp_path: Path) -> None:
    session(compact.graph_path(role), ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, tmp_path / "optimized.onnx")
    stored, opened = onnx.load(compact.graph_path(role)), onnx.load(tmp_path / "optimized.onnx")

    def halves(model: onnx.ModelProto) -> int:
        return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)

    assert halves(stored) >= 20
    assert halves(opened) == 0
    casts = {name for node in opened.graph.node if node.op_type == "Cast" for name in node.input}
    assert not casts & {tensor.name for tensor in opened.graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_the_weights_take_half_the_room(role: str, compact: Bundle, plain: Bundle) -> None:
    # The parameters of this small model are so few that the nodes weigh too: about 60 KB of them in either file.
    def weights(bundle: Bundle) -> int:
        return sum(len(tensor.raw_data) for tensor in onnx.load(bundle.graph_path(role)).graph.initializer)

    assert weights(compact) < 0.55 * weights(plain)
    assert compact.graph(role).file.bytes < 0.75 * plain.graph(role).file.bytes


@pytest.mark.slow
def test_the_kept_checkpoint_holds_the_weights_rounded_to_the_nearest(compact: Bundle, small_sam: Sam) -> None:
    kept = torch.load(compact.folder.parent / "rounded.pth", weights_only=True)
    original = small_sam.state_dict()
    assert kept.keys() == original.keys()
    for name, weights in original.items():
        assert kept[name].dtype == torch.float16
        assert np.array_equal(kept[name].numpy(), weights.numpy().astype(np.float16)), name


@pytest.mark.slow
def test_the_manifest_says_what_was_rounded_and_whose_weights_it_holds(
    compact: Bundle, plain: Bundle, checkpoint: Path, bundle: Path
) -> None:
    manifest, kept = compact.manifest, compact.folder.parent / "rounded.pth"
    assert manifest.checkpoint == {
        "name": checkpoint.name,
        "sha256": file_sha256(checkpoint),
        "rounded_to": "fp16",
        "rounded_name": "rounded.pth",
        "rounded_sha256": file_sha256(kept),
    }
    assert {graph.precision for graph in manifest.graphs} == {"fp32"}
    # Embeddings of equal weights may be mixed, however they are stored; those of the unrounded may not.
    assert manifest.embedding_id() == plain.manifest.embedding_id()
    assert manifest.embedding_id() != Bundle.open(bundle).manifest.embedding_id()
    assert manifest.verification["largest_embedding_difference"] < 1e-5


@pytest.mark.slow
def test_rounding_what_is_rounded_changes_nothing(compact: Bundle, tmp_path: Path) -> None:
    again = export_bundle(compact.folder.parent / "rounded.pth", tmp_path / "again", verify="off", compact=True)
    for role in ("encoder", "decoder"):
        assert again.graph(role).file == compact.graph(role).file
    assert "rounded_name" not in again.manifest.checkpoint


@pytest.mark.slow
def test_an_encoder_taken_from_a_bundle_is_stored_compactly_too(compact: Bundle, plain: Bundle, tmp_path: Path) -> None:
    taken = export_bundle(
        compact.folder.parent / "rounded.pth",
        tmp_path / "taken",
        encoder_from=plain.folder,
        verify="quick",
        compact=True,
    )
    assert taken.graph("encoder") == compact.graph("encoder")


def test_a_weight_beyond_half_precision_is_refused_and_nothing_is_written(tmp_path: Path, small_sam: Sam) -> None:
    state = {name: weights.clone() for name, weights in small_sam.state_dict().items()}
    state["mask_decoder.iou_token.weight"][0, 3] = -7e4
    torch.save(state, tmp_path / "large.pth")
    with pytest.raises(CheckpointError, match=r"large\.pth: mask_decoder\.iou_token\.weight holds 70000.*--compact"):
        export_bundle(
            tmp_path / "large.pth", tmp_path / "out", compact=True, rounded_checkpoint=tmp_path / "new" / "kept.pth"
        )
    assert [file.name for file in tmp_path.iterdir()] == ["large.pth"]


@pytest.mark.slow
def test_a_checkpoint_that_exists_is_not_replaced_unasked(tmp_path: Path, checkpoint: Path, small_sam: Sam) -> None:
    kept = save_checkpoint(tmp_path / "kept.pth", small_sam)
    before = file_sha256(kept)
    with pytest.raises(OutputError, match=r"kept\.pth already exists"):
        export_bundle(checkpoint, tmp_path / "out", verify="off", compact=True, rounded_checkpoint=kept)
    assert file_sha256(kept) == before
    assert not (tmp_path / "out").exists()
    asked = {"verify": "off", "compact": True, "rounded_checkpoint": kept, "overwrite": True}
    with pytest.raises(OutputError, match="not the rounded checkpoint"):
        export_bundle(checkpoint, tmp_path / "out", **asked)  # type: ignore[arg-type]
    assert file_sha256(kept) == before
    kept.unlink()
    for _ in range(2):
        export_bundle(checkpoint, tmp_path / "out", **asked)  # type: ignore[arg-type]


def test_a_checkpoint_inside_the_bundle_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(OutputError, match="inside the bundle"):
        export_bundle(checkpoint, tmp_path / "out", compact=True, rounded_checkpoint=tmp_path / "out" / "kept.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_weights_in_a_file_of_their_own_stay_there_and_are_halved(
    compact: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with models of ViT-B's size.
    monkeypatch.setattr(_onnx_writing, "MOST_INSIDE", 100_000)
    split = export_bundle(
        compact.folder.parent / "rounded.pth",
        tmp_path / "split",
        contracts=("sam-multi",),
        verify="quick",
        compact=True,
    )
    split.verify()
    listed = {file.path for graph in split.manifest.graphs for file in (graph.file, *graph.external_data)}
    assert {file.name for file in split.folder.iterdir()} == {"manifest.json", *listed}
    for role in ("encoder", "decoder"):
        (weights,) = split.graph(role).external_data
        assert weights.bytes < compact.graph(role).file.bytes
        ours, theirs = (answers(bundle, role, ort.GraphOptimizationLevel.ORT_ENABLE_ALL) for bundle in (split, compact))
        assert [result.tobytes() for result in ours] == [result.tobytes() for result in theirs]


@pytest.mark.slow
def test_the_command_keeps_the_checkpoint_beside_the_bundle(tmp_path: Path, checkpoint: Path) -> None:
    arguments = ["-c", checkpoint, "-o", tmp_path / "out", "--verify", "off", "--json"]
    arguments += ["--compact", "--rounded-checkpoint", tmp_path / "kept.pth"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert "samri-export: weights rounded to fp16\n" in result.stderr
    described = json.loads(result.stdout)
    assert described["graphs"][0]["bytes"] == (tmp_path / "out" / "encoder.onnx").stat().st_size
    assert (tmp_path / "kept.pth").stat().st_size < 0.6 * checkpoint.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounded-checkpoint", "kept.pth"], "--compact"),
        (["--compact", "--rounded-checkpoint", "kept.safetensors"], ".pth or .pt"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], words: str, tmp_path: Path, checkpoint: Path) -> None:
    result = CliRunner().invoke(main, ["-c", str(checkpoint), "-o", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_from_python_only_a_compact_bundle_keeps_rounded_weights(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="needs --compact"):
        export_bundle(checkpoint, tmp_path / "out", rounded_checkpoint=tmp_path / "kept.pth")


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([1.0, -2.5, 65504.0, 6.103515625e-05, 5.9604644775390625e-08, 0.0], True),
        ([1.0, -0.0], True),
        ([1.0, 1 / 3], False),  # More digits than half precision has.
        ([1.0, 65520.0], False),  # Too large for it.
        ([1.0, 1e-8], False),  # Too small.
    ],
)
def test_only_what_comes_back_bit_by_bit_is_stored_in_half(values: list[float], stored: bool) -> None:
    weights = np.resize(np.array(values, np.float32), (64, 8))
    graph = make_graph(
        [make_node("Add", ["x", "w"], ["y"])],
        "sum",
        [make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, 8])],
        [make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64, 8])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.arange(500), "integers")],
    )
    _compact._store_in_half(graph)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds.pop("integers") == onnx.TensorProto.INT64
    assert list(kinds.values()) == [onnx.TensorProto.FLOAT16 if stored else onnx.TensorProto.FLOAT]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    given = np.zeros((64, 8), np.float32)
    (result,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": given}
    )
    assert np.array_equal(result, weights)
