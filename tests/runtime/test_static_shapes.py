"""Static shapes and bound tensors, as GPU providers get them: the answers stay those of free shapes on the CPU.

Run on the CPU, unless `--provider cuda` is given: then on the GPU, with CUDA graphs and with free shapes too.
"""

from __future__ import annotations

import shutil
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from samri.bundle import Bundle, write_manifest
from samri.errors import BundleError
from samri.manifest import BundleFile, Graph, Manifest
from samri.prompts import Prompt
from samri_runtime import Predictor
from samri_runtime._decoders import needs_static_shapes, static_size
from samri_runtime.providers import Provider, Session, open_session
from tests.support.parity import PROMPT_KINDS, agree, picture, prompt_of

SHAPE = (90, 70)


@pytest.fixture(scope="module")
def flexible(bundle: Path) -> Predictor:
    return Predictor(bundle, provider="cpu")


WAYS: dict[str, dict[str, Any]] = {
    "static": {"static_shapes": True},
    "graphs": {"provider_options": {"enable_cuda_graph": "1"}},
    "free": {},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "static" in metafunc.fixturenames:
        ways = {"cpu": ["static"], "cuda": list(WAYS)}.get(metafunc.config.getoption("provider"), ["static", "free"])
        metafunc.parametrize("static", ways, indirect=True, scope="module")


@pytest.fixture(scope="module")
def provider(request: pytest.FixtureRequest) -> Provider:
    return cast(Provider, request.config.getoption("provider"))


@pytest.fixture(scope="module")
def static(bundle: Path, provider: Provider, request: pytest.FixtureRequest) -> Predictor:
    return Predictor(bundle, provider=provider, **WAYS[request.param])


@pytest.fixture(scope="module")
def decoder(bundle: Path, provider: Provider) -> Session:
    return open_session(bundle / "decoder.onnx", provider, fixed_axes={"prompts": 2, "points": 4})


def prompts(count: int) -> list[Prompt]:
    return [prompt_of(PROMPT_KINDS[i % len(PROMPT_KINDS)], SHAPE, i % 2) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 19])
def test_padded_prompts_get_the_masks_of_unpadded_ones(flexible: Predictor, static: Predictor, count: int) -> None:
    embedding = flexible.encode(picture(SHAPE))
    expected = flexible.predict(embedding, prompts=prompts(count), multimask=True)
    ours = static.predict(static.encode(picture(SHAPE)), prompts=prompts(count), multimask=True)
    agree(ours.low_res_logits, expected.low_res_logits)
    agree(ours.scores, expected.scores)
    assert np.ptp(expected.low_res_logits[0]) > 1


def test_a_prompt_longer_than_any_size_is_answered(flexible: Predictor, static: Predictor) -> None:
    rng = np.random.default_rng(0)
    embedding = flexible.encode(picture(SHAPE))
    points = rng.uniform(0, 69, (80, 2))
    agree(
        static.predict(embedding, points=points).low_res_logits,
        flexible.predict(embedding, points=points).low_res_logits,
    )


def test_a_mask_prompt_counts_once_and_is_forgotten_afterwards(flexible: Predictor, static: Predictor) -> None:
    embedding = flexible.encode(picture(SHAPE))
    for batch in (prompts(1), prompts(3)):
        plain = flexible.predict(embedding, prompts=batch)
        refined = flexible.predict(embedding, prompts=batch, mask_input=plain.low_res_logits)
        assert np.abs(refined.low_res_logits - plain.low_res_logits).max() > 1e-2 * np.ptp(plain.low_res_logits)
        answers = [
            static.predict(embedding, prompts=batch, mask_input=given).low_res_logits
            for given in (None, plain.low_res_logits, None)
        ]
        for ours, expected in zip(answers, (plain, refined, plain), strict=True):
            agree(ours, expected.low_res_logits)


def test_each_image_is_answered_from_its_own_embedding(flexible: Predictor, static: Predictor) -> None:
    embeddings = [flexible.encode(picture(SHAPE)), flexible.encode(picture(SHAPE)[::-1].copy())]
    expected = [flexible.predict(embedding, prompts=prompts(2)).low_res_logits for embedding in embeddings]
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.ptp(expected[0])
    for image in (0, 1, 1, 0, 1, 0):
        agree(static.predict(embeddings[image], prompts=prompts(2)).low_res_logits, expected[image])


def test_an_embedding_in_half_the_memory_gives_nearly_the_same_masks(flexible: Predictor, static: Predictor) -> None:
    embedding = flexible.encode(picture(SHAPE))
    half = embedding.half()
    assert 2 * half.features.nbytes == embedding.features.nbytes
    expected = flexible.predict(embedding, prompts=prompts(5))
    ours = flexible.predict(half, prompts=prompts(5))
    for one, other in zip(ours.masks, expected.masks, strict=True):
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.99
    assert ours.low_res_logits.dtype == np.float32
    agree(static.predict(half, prompts=prompts(5)).low_res_logits, ours.low_res_logits)
    with pytest.raises(ValueError, match="float16"):
        replace(embedding, features=embedding.features * np.float32(1e6)).half()


def test_threads_take_turns_and_get_their_own_answers(flexible: Predictor, static: Predictor) -> None:
    embeddings = [flexible.encode(picture(SHAPE)), flexible.encode(picture(SHAPE)[::-1].copy())]
    expected = [flexible.predict(embedding, prompts=prompts(3)).low_res_logits for embedding in embeddings]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(static.predict, embeddings[i % 2], prompts=prompts(3)) for i in range(16)]
        for i, answer in enumerate(asked):
            agree(answer.result().low_res_logits, expected[i % 2])


def test_any_number_of_prompts_needs_a_few_sizes_only() -> None:
    sizes = {static_size(count, points) for count in range(1, 17) for points in range(1, 65)}
    assert len(sizes) == 9
    assert all(
        static_size(b, n) >= (b, n) and static_size(b, n)[1] >= n for b, n in [(1, 1), (3, 5), (16, 64), (2, 65)]
    )


def test_a_static_decoder_has_nothing_that_a_cuda_graph_cannot_hold(bundle: Path, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "static.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for axis, size in {"prompts": 4, "points": 4}.items():
        options.add_free_dimension_override_by_name(axis, size)
    ort.InferenceSession(str(bundle / "decoder.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "static.onnx").graph.node}
    assert "MatMul" in kinds
    # Control flow, and shapes computed on the host at run time.
    assert not kinds & {"If", "Loop", "Scan", "Shape", "NonZero", "ConstantOfShape", "Range"}


def test_bound_outputs_are_copies_and_inputs_stay(decoder: Session) -> None:
    bound = decoder.bound()
    rng = np.random.default_rng(0)
    feeds = {tensor.name: rng.standard_normal(tensor.shape).astype(np.float32) for tensor in decoder.inputs}
    feeds["point_labels"] = np.array([[1, 0, -1, -2], [2, 3, -2, -2]], np.float32)
    first = bound.run(feeds)
    kept = {name: values.copy() for name, values in first.items()}
    other = bound.run({"image_embeddings": feeds["image_embeddings"][..., ::-1]})
    assert np.abs(other["low_res_masks"] - first["low_res_masks"]).max() > 0
    for name, values in decoder.run(feeds).items():
        assert np.array_equal(first[name], kept[name])
        agree(first[name], values)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"point_labels": np.zeros((4, 2), np.float32)}, r"point_labels has the shape \(2, 4\), not \(4, 2\)"),
        ({"labels": np.zeros((2, 4), np.float32)}, "no input 'labels'"),
    ],
    ids=["shape", "name"],
)
def test_what_does_not_fit_a_bound_input_is_a_value_error(
    decoder: Session, feeds: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        decoder.bound().run(feeds)


def test_a_session_of_free_shapes_cannot_be_bound(bundle: Path) -> None:
    with pytest.raises(ValueError, match="fixed shape"):
        open_session(bundle / "decoder.onnx", "cpu").bound()


def test_a_graph_whose_axes_have_other_names_is_refused_static_shapes(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    model = onnx.load(copy / "encoder.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, copy / "encoder.onnx")
    manifest = Bundle.open(bundle).manifest
    encoder = manifest.graphs[0]
    assert encoder.role == "encoder"
    changed = Graph("encoder", "fp32", BundleFile.of(copy, "encoder.onnx"), embedding_id=encoder.embedding_id)
    fields = {**vars(manifest), "graphs": (changed, *manifest.graphs[1:])}
    write_manifest(copy, Manifest(**fields))
    Predictor(copy, provider="cpu").encode(picture(SHAPE))
    with pytest.raises(BundleError, match="its axes aren't called images"):
        Predictor(copy, provider="cpu", static_shapes=True).encode(picture(SHAPE))


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("cpu", {}, False),
        ("cuda", {}, False),
        ("cuda", {"enable_cuda_graph": "1"}, True),
        ("tensorrt", {}, True),
        ("migraphx", {}, True),
        ("directml", {}, True),
        ("coreml", {}, True),
        ("openvino", {}, False),
        ("openvino", {"device_type": "NPU"}, True),
    ],
)
def test_providers_that_compile_each_shape_get_static_ones(name: str, options: dict[str, str], wanted: bool) -> None:
    session = types.SimpleNamespace(provider=name)
    assert needs_static_shapes(session, options) is wanted  # type: ignore[arg-type]
