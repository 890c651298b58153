from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from segment_anything.modeling import Sam

from samri.bundle import Bundle
from samri.errors import BundleError
from samri.model import SamDecoder
from samri_export import _onnx_writing, export_bundle
from samri_runtime import Predictor
from tests.support.sams import MEDIUM, SMALL, save_checkpoint, seeded_sam, with_other_decoder


def run(path: Path, **inputs: object) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()})


def test_graphs_are_clean_and_of_the_stated_opset(contract_bundle: Bundle) -> None:
    assert [graph.role for graph in contract_bundle.manifest.graphs] == [
        "encoder",
        "decoder",
        "decoder_image",
        "decoder_prompts",
        "decoder_sam",
        "decoder_sam_multi",
    ]
    for graph in contract_bundle.manifest.graphs:
        path = contract_bundle.graph_path(graph.role)
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
        assert contract_bundle.manifest.opset == 17
        assert model.ir_version == 8  # What ONNX Runtime 1.22 reads, and older ones.
        assert not any(tensor.name in {value.name for value in model.graph.input} for tensor in model.graph.initializer)


def test_tensors_have_the_names_and_free_axes_of_the_contract(contract_bundle: Bundle) -> None:
    def tensors(role: str) -> dict[str, list[object]]:
        path = str(contract_bundle.graph_path(role))  # type: ignore[arg-type]
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        both = [*session.get_inputs(), *session.get_outputs()]
        assert {tensor.type for tensor in both} == {"tensor(float)"}
        return {tensor.name: tensor.shape for tensor in both}

    assert tensors("encoder") == {"image": ["images", 3, 128, 128], "image_embeddings": ["images", 64, 16, 16]}
    assert tensors("decoder") == {
        "image_embeddings": [1, 64, 16, 16],
        "point_coords": ["prompts", "points", 2],
        "point_labels": ["prompts", "points"],
        "mask_input": ["prompts", 1, 64, 64],
        "has_mask_input": ["prompts"],
        "low_res_masks": ["prompts", 4, 64, 64],
        "iou_predictions": ["prompts", 4],
    }
    assert tensors("decoder_sam") == {
        "image_embeddings": [1, 64, 16, 16],
        "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"],
        "mask_input": [1, 1, 64, 64],
        "has_mask_input": [1],
        "orig_im_size": [2],
        "masks": [1, 1, "height", "width"],
        "iou_predictions": [1, 1],
        "low_res_masks": [1, 1, 64, 64],
    }
    assert tensors("decoder_sam_multi")["masks"] == [1, 4, "height", "width"]


@pytest.mark.parametrize("images", [1, 2, 3])
def test_the_encoder_graph_takes_any_number_of_images(images: int, bundle: Path, small_sam: Sam) -> None:
    batch = np.random.default_rng(images).standard_normal((images, 3, 128, 128)).astype(np.float32)
    (embeddings,) = run(bundle / "encoder.onnx", image=batch)
    with torch.no_grad():
        expected = small_sam.image_encoder(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("prompts", "points"), [(1, 1), (1, 2), (3, 1), (5, 7), (2, 40)])
def test_the_decoder_graph_takes_any_number_of_prompts_and_points(
    prompts: int, points: int, bundle: Path, small_sam: Sam
) -> None:
    random = np.random.default_rng(prompts + points)
    inputs = {
        "image_embeddings": random.standard_normal((1, 64, 16, 16)),
        "point_coords": random.uniform(0, 128, (prompts, points, 2)),
        "point_labels": random.integers(-2, 4, (prompts, points)),
        "mask_input": random.standard_normal((prompts, 1, 64, 64)),
        "has_mask_input": random.integers(0, 2, prompts),
    }
    inputs = {name: value.astype(np.float32) for name, value in inputs.items()}
    logits, scores = run(bundle / "decoder.onnx", **inputs)
    with torch.no_grad():
        expected = SamDecoder(small_sam)(*(torch.from_numpy(value) for value in inputs.values()))
    np.testing.assert_allclose(logits, expected[0].numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores, expected[1].numpy(), rtol=0, atol=2e-5)


def test_a_has_mask_input_of_minus_one_means_no_mask(bundle: Path) -> None:
    random = np.random.default_rng(0)
    common = {
        "image_embeddings": random.standard_normal((1, 64, 16, 16)),
        "point_coords": [[[30, 40], [90, 100]]],
        "point_labels": [[2, 3]],
        "mask_input": random.standard_normal((1, 1, 64, 64)),
    }
    without, minus_one, given = (run(bundle / "decoder.onnx", has_mask_input=[has], **common)[0] for has in (0, -1, 1))
    np.testing.assert_array_equal(without, minus_one)
    assert np.abs(without - given).max() > 0.1


def test_the_encoder_graph_holds_encoder_weights_only(bundle: Path, small_sam: Sam) -> None:
    model = onnx.load(bundle / "encoder.onnx")
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    stored = sum(int(np.prod(tensor.dims)) for tensor in floats)
    encoder = sum(weight.numel() for weight in small_sam.image_encoder.parameters())
    # The relative positions are stored looked up, everything else as it is.
    assert stored < 1.5 * encoder


@pytest.mark.slow
def test_many_weights_lie_beside_their_graph(
    tmp_path: Path, checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_writing, "MOST_INSIDE", 100_000)
    split = export_bundle(checkpoint, tmp_path / "split", verify="quick")
    (data,) = split.graph("encoder").external_data
    assert data.path == "encoder.onnx.data"
    modes = {path.stat().st_mode for path in (tmp_path / "split").iterdir()}
    assert len(modes) == 1  # A user who may read the graph may read its weights.
    assert sorted(path.name for path in (tmp_path / "split").iterdir()) == [
        "decoder.onnx",
        "decoder.onnx.data",
        "decoder_image.onnx",
        "decoder_image.onnx.data",
        "decoder_prompts.onnx",
        "decoder_prompts.onnx.data",
        "encoder.onnx",
        "encoder.onnx.data",
        "manifest.json",
    ]
    image = np.random.default_rng(0).standard_normal((1, 3, 128, 128))
    (expected,) = run(bundle / "encoder.onnx", image=image)
    (embedding,) = run(split.graph_path("encoder"), image=image)
    np.testing.assert_array_equal(embedding, expected)
    kept = onnx.load(split.graph_path("encoder"), load_external_data=False).graph
    assert all(
        tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() < 2048 for tensor in kept.initializer
    )
    assert all(node.ByteSize() < 2048 for node in kept.node)


@pytest.mark.slow
def test_a_predictor_refuses_damaged_weights_beside_a_graph(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_writing, "MOST_INSIDE", 100_000)
    picture = np.random.default_rng(0).random((30, 40))
    export_bundle(checkpoint, tmp_path / "whole", verify="off")
    Predictor(tmp_path / "whole", "cpu").encode(picture)
    changed, cut = (shutil.copytree(tmp_path / "whole", tmp_path / name) for name in ("changed", "cut"))
    content = bytearray((changed / "encoder.onnx.data").read_bytes())
    content[len(content) // 2] ^= 1
    (changed / "encoder.onnx.data").write_bytes(content)
    predictor = Predictor(changed, "cpu")
    for _ in range(2):
        with pytest.raises(BundleError, match=r"encoder\.onnx\.data was changed"):
            predictor.encode(picture)
    (cut / "encoder.onnx.data").write_bytes(b"")
    with pytest.raises(BundleError, match=r"encoder\.onnx\.data has 0 bytes"):
        Predictor(cut, "cpu").encode(picture)


@pytest.mark.slow
def test_all_precisions_are_the_same_with_weights_beside_the_graph(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(name: str, **options: Any) -> Bundle:
        return export_bundle(
            checkpoint, tmp_path / name, precisions=("fp32", "fp16", "int8"), verify="off", force=True, **options
        )

    inside = exported("inside")
    monkeypatch.setattr(_onnx_writing, "MOST_INSIDE", 100_000)
    beside = exported("beside")
    monkeypatch.chdir(beside.folder)  # A file of that name in the working directory is none of the export's business.
    again = exported("again", encoder_from=beside.folder)
    again.verify()
    assert again.graph("encoder").external_data == beside.graph("encoder").external_data
    image = np.random.default_rng(0).standard_normal((1, 3, 128, 128))
    for precision in ("fp32", "fp16", "int8"):
        (expected,) = run(inside.graph_path("encoder", precision), image=image)
        for bundle in (beside, again):
            assert bundle.graph("encoder", precision).external_data
            (embedding,) = run(bundle.graph_path("encoder", precision), image=image)
            np.testing.assert_array_equal(embedding, expected)
    other = export_bundle(
        save_checkpoint(tmp_path / "other.pth", seeded_sam(SMALL, seed=5)), tmp_path / "other", verify="off"
    )
    assert other.graph("encoder").sha256 != beside.graph("encoder").sha256


@pytest.mark.slow
def test_decoders_of_one_encoder_share_its_embedding_id(tmp_path: Path, bundle: Path, small_sam: Sam) -> None:
    tuned = save_checkpoint(tmp_path / "tuned.pth", with_other_decoder(small_sam, seed=3))
    first, second = Bundle.open(bundle), export_bundle(tuned, tmp_path / "tuned", verify="off")
    assert first.manifest.embedding_id() == second.manifest.embedding_id()
    assert first.graph("encoder").file.sha256 == second.graph("encoder").file.sha256
    assert first.graph("decoder").file.sha256 != second.graph("decoder").file.sha256
    other_profile = export_bundle(tuned, tmp_path / "sam", profile="sam", verify="off")
    assert other_profile.manifest.embedding_id() != first.manifest.embedding_id()


@pytest.mark.slow
def test_an_encoder_is_reused_from_another_bundle(tmp_path: Path, bundle: Path, small_sam: Sam) -> None:
    tuned = save_checkpoint(tmp_path / "tuned.pth", with_other_decoder(small_sam, seed=3))
    reused = export_bundle(tuned, tmp_path / "tuned", encoder_from=bundle, verify="off")
    assert reused.graph("encoder") == Bundle.open(bundle).graph("encoder")
    assert reused.graph_path("encoder").read_bytes() == (bundle / "encoder.onnx").read_bytes()


@pytest.mark.parametrize("difference", ["weights", "profile", "architecture"])
def test_an_encoder_that_is_another_one_is_not_reused(
    difference: str, tmp_path: Path, bundle: Path, checkpoint: Path
) -> None:
    other = {"weights": seeded_sam(seed=9), "architecture": seeded_sam(MEDIUM)}.get(difference)
    path = checkpoint if other is None else save_checkpoint(tmp_path / "other.pth", other)
    with pytest.raises(BundleError, match="leave out --encoder-from"):
        export_bundle(path, tmp_path / "out", encoder_from=bundle, profile="sam" if other is None else "samri")
    assert not (tmp_path / "out").exists()


def test_an_encoder_with_a_changed_byte_is_not_reused(tmp_path: Path, bundle: Path, checkpoint: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in bundle.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    content = bytearray((damaged / "encoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "encoder.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"encoder\.onnx was changed"):
        export_bundle(checkpoint, tmp_path / "out", encoder_from=damaged)
