"""`Predictor` against `segment_anything.SamPredictor`: same weights, same images, same prompts."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
from segment_anything.modeling import Sam

from samri.errors import BundleError, InputError, PromptError, ProviderError
from samri.prompts import Prompt
from samri_export import export_bundle
from samri_runtime import Embedding, Predictor, SamPredictor
from tests.support.parity import IMAGE_SHAPES, PROMPT_KINDS, PromptKind, agree, covers_a_part, picture, prompt_of
from tests.support.sams import VIT_B, save_checkpoint, seeded_sam


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, provider="cpu")


@pytest.fixture(scope="module")
def reference(small_sam: Sam) -> segment_anything.SamPredictor:
    return segment_anything.SamPredictor(small_sam)


@pytest.mark.parametrize("shape", IMAGE_SHAPES)
@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_masks_are_segment_anythings(
    predictor: Predictor, reference: segment_anything.SamPredictor, shape: tuple[int, int], kind: PromptKind
) -> None:
    image = picture(shape)
    reference.set_image(np.repeat(image[:, :, None], 3, axis=2))
    embedding = predictor.encode(image, intensity_range=(0, 255))
    answers = []
    for variant in (0, 1):
        prompt = prompt_of(kind, shape, variant)
        masks, logits, scores = ask_reference(reference, prompt)
        ours = predictor.predict(embedding, prompts=[prompt], multimask=True)
        single = predictor.predict(embedding, prompts=[prompt])
        agree(np.concatenate([single.logits(), ours.logits()[0]]), logits)
        agree(np.concatenate([single.scores, ours.scores[0]]), scores)
        assert np.array_equal(single.masks[0], single.logits()[0] > 0)
        for mask in masks:
            covers_a_part(mask)
        answers.append(masks)
    for one, other in zip(*answers, strict=True):
        assert not np.array_equal(one, other), "the mask must depend on the prompt"


def ask_reference(
    reference: segment_anything.SamPredictor, prompt: Prompt
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, logits (4, H, W) and scores (4,): the single answer, then the three candidates."""
    arguments: dict[str, Any] = {
        "point_coords": prompt.points if len(prompt.points) else None,
        "point_labels": prompt.labels if len(prompt.points) else None,
        "box": prompt.box,
        "return_logits": True,
    }
    one, one_score, _ = reference.predict(**arguments, multimask_output=False)
    three, three_scores, _ = reference.predict(**arguments, multimask_output=True)
    logits = np.concatenate([one, three])
    return logits > 0, logits, np.concatenate([one_score, three_scores])


@pytest.mark.parametrize("shape", IMAGE_SHAPES)
def test_refining_an_earlier_answer_is_segment_anythings(
    predictor: Predictor, reference: segment_anything.SamPredictor, shape: tuple[int, int]
) -> None:
    image = picture(shape)
    drop_in = SamPredictor(predictor)
    reference.set_image(np.repeat(image[:, :, None], 3, axis=2))
    drop_in.set_image(np.repeat(image[:, :, None], 3, axis=2))
    prompt = prompt_of("box and points", shape, 0)
    for multimask in (False, True):
        _, _, low_res = reference.predict(box=prompt.box, multimask_output=False)
        given: dict[str, Any] = {
            "point_coords": prompt.points,
            "point_labels": prompt.labels,
            "mask_input": low_res,
            "multimask_output": multimask,
            "return_logits": True,
        }
        expected, ours = reference.predict(**given), drop_in.predict(**given)
        for theirs, mine in zip(expected, ours, strict=True):
            agree(mine, theirs)
        for mask in expected[0] > 0:
            covers_a_part(mask)
        unrefined = reference.predict(**(given | {"mask_input": None}))
        assert np.abs(unrefined[0] - expected[0]).max() > 1e-2 * np.ptp(expected[0]), "the mask prompt must matter"


def test_the_drop_in_has_metas_results_for_every_kind_of_call(
    predictor: Predictor, reference: segment_anything.SamPredictor
) -> None:
    image = np.stack([picture((90, 130)), picture((90, 130))[::-1], picture((90, 130))[:, ::-1]], axis=2)
    drop_in = SamPredictor(predictor)
    assert not drop_in.is_image_set
    for image_format in ("RGB", "BGR"):
        reference.set_image(image, image_format)
        drop_in.set_image(image, image_format)
        agree(drop_in.get_image_embedding(), reference.get_image_embedding().numpy())
        assert (drop_in.original_size, drop_in.input_size) == (reference.original_size, reference.input_size)
        low_res = reference.predict(box=np.array([10, 10, 60, 60]))[2][:1]
        calls: list[dict[str, Any]] = [
            {"box": np.array([-20, 10, 200, 60])},  # Meta's class clips nothing.
            {"box": np.array([[10, 10, 60, 60]])},
            {"point_coords": np.array([[300, 20]]), "point_labels": np.array([1]), "multimask_output": False},
            {"mask_input": low_res},
            {},
        ]
        for call in calls:
            for return_logits in (False, True):
                expected = reference.predict(**call, return_logits=return_logits)
                ours = drop_in.predict(**call, return_logits=return_logits)
                assert [a.shape for a in ours] == [a.shape for a in expected]
                assert ours[0].dtype == expected[0].dtype
                if return_logits:
                    agree(ours[0], expected[0])
                agree(ours[1], expected[1])
                agree(ours[2], expected[2])
    drop_in.reset_image()
    with pytest.raises(InputError, match="set_image"):
        drop_in.predict(box=[1, 2, 3, 4])


def test_a_batch_of_prompts_of_different_lengths_equals_them_one_by_one(predictor: Predictor) -> None:
    shape = (150, 110)
    embedding = predictor.encode(picture(shape))
    prompts = [prompt_of(kind, shape, variant) for kind in PROMPT_KINDS for variant in (0, 1)]
    low_res = predictor.predict(embedding, prompts=prompts[:1]).low_res_logits
    together = predictor.predict(embedding, prompts=prompts, mask_input=np.repeat(low_res, len(prompts), axis=0))
    for index, prompt in enumerate(prompts):
        alone = predictor.predict(embedding, prompts=[prompt], mask_input=low_res)
        agree(together.low_res_logits[index], alone.low_res_logits[0])
        agree(together.scores[index], alone.scores[0])


def test_more_prompts_than_one_pass_holds_are_all_answered(predictor: Predictor) -> None:
    embedding = predictor.encode(picture((64, 80)))
    boxes = [[i % 40, i % 30, i % 40 + 20, i % 30 + 25] for i in range(70)]
    many = predictor.predict(embedding, boxes=boxes)
    assert many.masks.shape == (70, 64, 80)
    agree(many.low_res_logits[69], predictor.predict(embedding, boxes=boxes[69]).low_res_logits[0])


def test_arrays_and_prompts_are_two_ways_to_ask(predictor: Predictor) -> None:
    embedding = predictor.encode(picture((64, 80)))
    box, points, labels = [10, 12, 50, 40], [[20, 20], [60, 50]], [1, 0]
    by_arrays = predictor.predict(embedding, boxes=box, points=points, point_labels=labels)
    by_prompt = predictor.predict(embedding, prompts=[Prompt.of(points, labels, box)])
    assert np.array_equal(by_arrays.low_res_logits, by_prompt.low_res_logits)


def test_results_have_the_shapes_that_the_documentation_states(predictor: Predictor) -> None:
    embedding = predictor.encode(np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32))
    boxes = [[5, 5, 30, 30], [10, 10, 60, 45]]
    one = predictor.predict(embedding, boxes=boxes)
    three = predictor.predict(embedding, boxes=boxes, multimask=True)
    side = 4 * predictor.manifest.embedding_shape[1]
    assert (one.masks.shape, one.masks.dtype) == ((2, 50, 70), bool)
    assert (three.masks.shape, three.scores.shape) == ((2, 3, 50, 70), (2, 3))
    assert (one.scores.shape, one.low_res_logits.shape) == ((2,), (2, side, side))
    assert three.logits().shape == (2, 3, 50, 70)
    assert predictor.providers == {"encoder": "cpu", "decoder": "cpu"}


def test_a_box_beyond_the_image_is_clipped_with_a_note(predictor: Predictor) -> None:
    embedding = predictor.encode(picture((64, 80)))
    beyond = predictor.predict(embedding, boxes=[[-10, 5, 60, 900]])
    inside = predictor.predict(embedding, boxes=[[0, 5, 60, 64]])
    assert np.array_equal(beyond.low_res_logits, inside.low_res_logits)
    assert len(beyond.notes) == 1
    assert "clipped" in beyond.notes[0]
    assert inside.notes == ()


def test_threads_get_the_answers_they_would_get_alone(predictor: Predictor) -> None:
    shapes = [(64, 80), (100, 60), (128, 128)]
    expected = [answer(predictor, shapes[i % 3], i) for i in range(12)]
    start = threading.Barrier(6)

    def work(i: int) -> np.ndarray:
        if i < 6:
            start.wait(timeout=60)
        return answer(predictor, shapes[i % 3], i)

    with ThreadPoolExecutor(6) as pool:
        for ours, theirs in zip(pool.map(work, range(12)), expected, strict=True):
            agree(ours, theirs)


def answer(predictor: Predictor, shape: tuple[int, int], i: int) -> np.ndarray:
    embedding = predictor.encode(picture(shape))
    return predictor.predict(embedding, boxes=[[i, i, i + 30, i + 20]]).low_res_logits


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"prompts": [Prompt.of(box=[1, 2, 3, 4])], "boxes": [[1, 2, 3, 4]]},
        {"boxes": [[1, 2, 3, 4]], "mask_input": np.zeros((3, 3))},
        {"boxes": [[1, 2, 3, 4]], "mask_input": np.full((64, 64), np.nan)},
        {"points": [[100, 5]]},
    ],
)
def test_a_call_that_makes_no_sense_is_a_prompt_error(predictor: Predictor, arguments: dict[str, Any]) -> None:
    embedding = predictor.encode(picture((64, 80)))
    with pytest.raises(PromptError):
        predictor.predict(embedding, **arguments)


def test_an_embedding_of_another_encoder_is_refused(predictor: Predictor) -> None:
    embedding = predictor.encode(picture((64, 80)))
    with pytest.raises(InputError, match="another encoder"):
        predictor.predict(Embedding(embedding.features, embedding.shape, "other"), boxes=[[1, 2, 30, 40]])


@pytest.mark.parametrize("bad", [np.zeros((5, 5, 4)), np.full((5, 5), np.nan), np.zeros((0, 3))])
def test_what_is_no_image_is_refused(predictor: Predictor, bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        predictor.encode(bad)


def test_a_provider_that_is_not_there_is_refused_when_the_bundle_is_opened(bundle: Path) -> None:
    with pytest.raises(ProviderError):
        Predictor(bundle, provider="migraphx")


@pytest.mark.parametrize(("key", "value"), [("image_size", 100_000_000), ("embedding_shape", [64, 8, 8])])
def test_a_manifest_that_does_not_fit_its_graphs_is_refused_before_memory_is_taken(
    bundle: Path, tmp_path: Path, key: str, value: object
) -> None:
    shutil.copytree(bundle, tmp_path / "other")
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {key: value}))
    with pytest.raises(BundleError, match="manifest"):
        Predictor(tmp_path / "other", provider="cpu").encode(picture((20, 30)))


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="int8"):
        Predictor(bundle, precision="int8")


@pytest.mark.parametrize(
    ("global_blocks", "backbone"),
    [
        # Every tensor at ViT-B's size, in a third of its blocks: windows and the whole frame by turns.
        pytest.param((1, 3), "vit_768x4_p16_s1024", marks=pytest.mark.slow, id="four blocks"),
        pytest.param(VIT_B.global_blocks, "vit_b", marks=pytest.mark.exhaustive, id="all blocks"),
    ],
)
def test_vit_b_gives_segment_anythings_masks(global_blocks: tuple[int, ...], backbone: str, tmp_path: Path) -> None:
    sam = seeded_sam(dataclasses.replace(VIT_B, encoder_depth=global_blocks[-1] + 1, global_blocks=global_blocks))
    save_checkpoint(tmp_path / "vit_b.pth", sam)
    export_bundle(tmp_path / "vit_b.pth", tmp_path / "vit_b", profile="sam", verify="off")
    predictor = Predictor(tmp_path / "vit_b", provider="cpu")
    assert predictor.manifest.backbone == backbone
    reference = segment_anything.SamPredictor(sam)
    shape = (300, 220)
    image = np.repeat(picture(shape)[:, :, None], 3, axis=2)
    reference.set_image(image)
    embedding = predictor.encode(image)
    agree(embedding.features, reference.get_image_embedding().numpy())
    kinds: Sequence[PromptKind] = ("box", "points", "box and points")
    prompts = [prompt_of(kind, shape, variant) for kind in kinds for variant in (0, 1)]
    ours = predictor.predict(embedding, prompts=prompts)
    for index, prompt in enumerate(prompts):
        masks, logits, scores = ask_reference(reference, prompt)
        agree(ours.logits()[index], logits[0])
        agree(ours.scores[index], scores[0])
        covers_a_part(masks[0])
    assert len({mask.tobytes() for mask in ours.masks}) == len(prompts)
