from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samri.errors import BundleError
from samri_runtime import Predictor, models
from samri_runtime._decoders import ALL, CANDIDATES, SINGLE, FlexibleDecoder, SplitDecoder
from samri_runtime._graphs import open_graph
from samri_runtime.providers import is_cpu, open_session
from tests.support.parity import picture


class Counted:
    """A session that counts its runs."""

    def __init__(self, path: Path) -> None:
        self.session = open_session(path, "cpu")
        self.source, self.inputs, self.outputs = self.session.source, self.session.inputs, self.session.outputs
        self.runs = 0

    def run(self, feeds: Any) -> Any:
        self.runs += 1
        return self.session.run(feeds)


@pytest.fixture
def split_decoder(bundle: Path) -> tuple[SplitDecoder, Counted, Counted]:
    image, prompts = Counted(bundle / "decoder_image.onnx"), Counted(bundle / "decoder_prompts.onnx")
    decoder = SplitDecoder(
        prompts,  # type: ignore[arg-type]
        4,
        lambda: image,  # type: ignore[arg-type, return-value]
        lambda: open_session(bundle / "decoder.onnx", "cpu"),
    )
    return decoder, image, prompts


def asked(prompts: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    coords = random.uniform(0, 128, (prompts, 3, 2)).astype(np.float32)
    return coords, np.tile(np.array([[1, 2, 3]], np.float32), (prompts, 1))


def features(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((1, 64, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("prompts", [1, 2, 5, 40])
def test_two_graphs_answer_as_the_whole_decoder_does(prompts: int, bundle: Path, split_decoder: Any) -> None:
    whole = FlexibleDecoder(open_session(bundle / "decoder.onnx", "cpu"))
    embedding, (coords, labels) = features(), asked(prompts)
    for requested, count in ((SINGLE, 1), (CANDIDATES, 3), (ALL, 4)):
        for given, expected in zip(
            split_decoder[0](embedding, coords, labels, None, requested),
            whole(embedding, coords, labels, None, requested),
            strict=True,
        ):
            assert given.shape[:2] == (prompts, count)
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * max(1.0, float(np.ptp(expected))))


def test_the_image_stage_runs_once_per_image(split_decoder: Any) -> None:
    decoder, image, prompts = split_decoder
    first, second = features(1), features(2)
    answers = [decoder(first, *asked(2, seed), None, ALL)[0] for seed in range(3)]
    assert (image.runs, prompts.runs) == (1, 3)
    other = decoder(second, *asked(2), None, ALL)[0]
    assert image.runs == 2
    assert not np.allclose(other, answers[0])
    np.testing.assert_array_equal(decoder(first, *asked(2), None, ALL)[0], answers[0])


def test_an_image_stage_of_another_model_is_refused(bundle: Path) -> None:
    decoder = SplitDecoder(
        open_session(bundle / "decoder_prompts.onnx", "cpu"),
        4,
        lambda: open_session(models.locate("samri-tiny") / "decoder_image.onnx", "cpu"),
        lambda: open_session(bundle / "decoder.onnx", "cpu"),
    )
    with pytest.raises(BundleError, match=r"decoder_image\.onnx and .*decoder_prompts\.onnx don't fit together"):
        decoder(features(), *asked(1), None, ALL)


@pytest.mark.slow
def test_an_array_at_the_place_of_a_dead_one_is_another_image(split_decoder: Any) -> None:
    decoder, image, _ = split_decoder
    for seed in range(4):
        embedding = features(seed)
        decoder(embedding, *asked(1), None, ALL)
        del embedding
        gc.collect()
    assert image.runs == 4


def test_prompts_with_masks_go_to_the_whole_decoder(split_decoder: Any) -> None:
    decoder, image, prompts = split_decoder
    masks = np.random.default_rng(3).standard_normal((2, 1, 64, 64)).astype(np.float32)
    with_masks = decoder(features(), *asked(2), masks, ALL)[0]
    assert (image.runs, prompts.runs) == (0, 0)
    assert np.abs(with_masks - decoder(features(), *asked(2), None, ALL)[0]).max() > 0.1


def test_prompts_of_many_points_go_to_the_whole_decoder(split_decoder: Any) -> None:
    decoder, image, prompts = split_decoder
    for points in (16, 17):
        labels = np.ones((2, points), np.float32)
        coords = np.random.default_rng(4).uniform(0, 128, (2, points, 2)).astype(np.float32)
        answer = decoder(features(), coords, labels, None, ALL)[0]
        assert answer.shape == (2, 4, 64, 64) and (image.runs, prompts.runs) == (1, 1)


def test_threads_that_ask_of_different_images_get_their_own_answers(split_decoder: Any) -> None:
    decoder = split_decoder[0]
    embeddings = [features(seed) for seed in range(4)]
    alone = [decoder(embedding, *asked(1), None, ALL)[0] for embedding in embeddings]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: decoder(embeddings[i % 4], *asked(1), None, ALL)[0], range(32)))
    for number, answer in enumerate(found):
        np.testing.assert_array_equal(answer, alone[number % 4])


def spied_roles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles of graphs, as they are opened."""
    roles: list[str] = []

    def spied(bundle: Any, role: Any, *arguments: Any, **named: Any) -> Any:
        roles.append(role)
        return open_graph(bundle, role, *arguments, **named)

    monkeypatch.setattr("samri_runtime._open_model.open_graph", spied)
    return roles


@pytest.mark.parametrize(
    ("cpu_is_all", "opened"), [(True, ["decoder_prompts"]), (False, ["decoder", "decoder_prompts"])]
)
def test_auto_tries_accelerators_with_the_graph_that_they_would_run(
    cpu_is_all: bool, opened: list[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = spied_roles(monkeypatch)
    monkeypatch.setattr("samri_runtime._open_model.is_cpu", lambda provider: cpu_is_all)
    predictor = Predictor(bundle, precision="fp32")
    assert isinstance(predictor._model.decoder, SplitDecoder)
    assert roles == opened


@pytest.mark.parametrize("offered", [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_only_a_wheel_without_accelerators_makes_auto_the_cpu(
    offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = SimpleNamespace(get_available_providers=lambda: offered)
    monkeypatch.setattr("samri_runtime.providers._opening.load_onnxruntime", lambda: wheel)
    assert is_cpu("auto") == (offered == ["CPUExecutionProvider"])
    assert is_cpu("cpu") and not is_cpu("cuda")


def test_a_prompt_without_a_mask_opens_no_whole_decoder(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = spied_roles(monkeypatch)
    predictor = Predictor(bundle, provider="cpu", precision="fp32")
    embedding = predictor.encode(picture((100, 80)))
    answer = predictor.predict(embedding, boxes=[[10, 10, 60, 70]])
    assert predictor.predict(embedding, boxes=[[10, 10, 60, 70]], multimask=True).masks.shape == (1, 3, 100, 80)
    assert set(roles) == {"encoder", "decoder_image", "decoder_prompts"}
    predictor.predict(embedding, boxes=[[10, 10, 60, 70]], mask_input=answer.low_res_logits)
    assert "decoder" in roles


@pytest.mark.parametrize(("prompts", "decoder"), [(1, FlexibleDecoder), (2, FlexibleDecoder), (3, SplitDecoder)])
def test_an_image_that_is_asked_little_is_not_prepared(prompts: int, decoder: type, bundle: Path) -> None:
    predictor = Predictor(bundle, provider="cpu", precision="fp32", prompts_per_image=prompts)
    assert isinstance(predictor._model.decoder, decoder)
    embedding, boxes = predictor.encode(picture((100, 80))), [[10, 10, 60, 70], [5, 9, 40, 40], [20, 30, 70, 90]]
    given, expected = (each.predict(embedding, boxes=boxes) for each in (predictor, Predictor(bundle, provider="cpu")))
    spread = float(np.ptp(expected.low_res_logits))
    np.testing.assert_allclose(given.low_res_logits, expected.low_res_logits, rtol=0, atol=1e-5 * spread)


def test_a_predictor_on_the_cpu_uses_them(bundle: Path) -> None:
    predictor = Predictor(bundle, provider="cpu")
    assert isinstance(predictor._model.decoder, SplitDecoder)
    embedding = predictor.encode(picture((100, 80)))
    first = predictor.predict(embedding, boxes=[[10, 10, 60, 70]])
    refined = predictor.predict(embedding, boxes=[[10, 10, 60, 70]], mask_input=first.low_res_logits)
    assert not np.array_equal(first.low_res_logits, refined.low_res_logits)
