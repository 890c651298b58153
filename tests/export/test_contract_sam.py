"""Meta's published decoder interface, called as Meta's own example notebook calls it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from samri.bundle import Bundle
from samri.manifest import Role
from tests.support.parity import covers_a_part

SHAPES = {
    "portrait": (150, 96),
    "landscape": (75, 110),
    "square": (90, 90),
    "thin": (20, 200),
    "model size": (128, 128),
    "large": (301, 256),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Fractions of the image's size; a box is two corners."""

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    refines: bool = False


CASES = {
    "point": Case(points=((0.4, 0.6),), labels=(1,)),
    "points": Case(points=((0.4, 0.6), (0.7, 0.3), (0.2, 0.2)), labels=(1, 1, 0)),
    "box": Case(box=(0.2, 0.15, 0.7, 0.8)),
    "box and point": Case(points=((0.5, 0.5),), labels=(1,), box=(0.2, 0.15, 0.7, 0.8)),
    "refined": Case(points=((0.4, 0.6), (0.7, 0.3)), labels=(1, 0), refines=True),
}


def image_of(shape: tuple[int, int]) -> np.ndarray:
    random = np.random.default_rng(sum(shape))
    coarse = random.uniform(0, 255, (7, 7, 3))
    rows, columns = (np.linspace(0, 6, side).astype(int) for side in shape)
    return (coarse[rows][:, columns] * random.uniform(0.8, 1, (*shape, 1))).astype(np.uint8)


def ask_sam(predictor: SamPredictor, case: Case, multimask: bool, low_res: np.ndarray | None) -> Any:
    height, width = predictor.original_size
    size = np.array([width, height])
    return predictor.predict(
        point_coords=np.array(case.points) * size if case.points else None,
        point_labels=np.array(case.labels) if case.labels else None,
        box=np.array(case.box) * np.tile(size, 2) if case.box else None,
        mask_input=low_res,
        multimask_output=multimask,
        return_logits=True,
    )


def ask_onnx(
    session: ort.InferenceSession, predictor: SamPredictor, case: Case, low_res: np.ndarray | None
) -> list[np.ndarray]:
    """As in Meta's notebook: points, then the box's corners as labels 2 and 3, or a padding point in its place."""
    height, width = predictor.original_size
    size = np.array([width, height])
    coords = np.array(case.points).reshape(-1, 2) * size
    labels = list(case.labels)
    if case.box:
        coords, labels = np.concatenate([coords, np.array(case.box).reshape(2, 2) * size]), [*labels, 2, 3]
    else:
        coords, labels = np.concatenate([coords, np.zeros((1, 2))]), [*labels, -1]
    onnx_coord = predictor.transform.apply_coords(coords[None], (height, width)).astype(np.float32)
    return session.run(
        None,
        {
            "image_embeddings": predictor.get_image_embedding().cpu().numpy(),
            "point_coords": onnx_coord,
            "point_labels": np.array([labels], dtype=np.float32),
            "mask_input": np.zeros((1, 1, 64, 64), dtype=np.float32) if low_res is None else low_res[None],
            "has_mask_input": np.array([low_res is not None], dtype=np.float32),
            "orig_im_size": np.array((height, width), dtype=np.float32),
        },
    )


def same_masks(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3 * float(np.ptp(expected)))
    for ours, theirs in zip(logits > 0, expected > 0, strict=True):
        covers_a_part(theirs)
        assert 2 * (ours & theirs).sum() >= 0.999 * (ours.sum() + theirs.sum())


def opened(bundle: Bundle, role: Role) -> ort.InferenceSession:
    return ort.InferenceSession(str(bundle.graph_path(role)), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def multi(contract_bundle: Bundle) -> ort.InferenceSession:
    return opened(contract_bundle, "decoder_sam_multi")


@pytest.fixture(scope="module")
def single(contract_bundle: Bundle) -> ort.InferenceSession:
    return opened(contract_bundle, "decoder_sam")


@pytest.fixture(scope="module", params=SHAPES)
def predictor(request: pytest.FixtureRequest, small_sam: Sam) -> SamPredictor:
    predictor = SamPredictor(small_sam)
    predictor.set_image(image_of(SHAPES[request.param]))
    return predictor


@pytest.mark.parametrize("name", CASES)
def test_the_multi_mask_decoder_equals_sam_predictor(
    name: str, predictor: SamPredictor, multi: ort.InferenceSession
) -> None:
    case = CASES[name]
    low_res = ask_sam(predictor, CASES["box"], False, None)[2] if case.refines else None
    masks, scores, low_res_masks = ask_onnx(multi, predictor, case, low_res)
    several, several_scores, several_low = ask_sam(predictor, case, True, low_res)
    one, one_scores, one_low = ask_sam(predictor, case, False, low_res)
    same_masks(masks[0], np.concatenate([one, several]))
    np.testing.assert_allclose(scores[0], np.concatenate([one_scores, several_scores]), rtol=0, atol=1e-4)
    expected_low = np.concatenate([one_low, several_low])
    np.testing.assert_allclose(low_res_masks[0], expected_low, rtol=0, atol=1e-3 * float(np.ptp(expected_low)))


@pytest.mark.parametrize("name", CASES)
def test_the_single_mask_decoder_chooses_as_metas_does(
    name: str, predictor: SamPredictor, single: ort.InferenceSession
) -> None:
    case = CASES[name]
    low_res = ask_sam(predictor, CASES["box"], False, None)[2] if case.refines else None
    masks, scores, _ = ask_onnx(single, predictor, case, low_res)
    tokens = len(case.points) + (2 if case.box else 1)
    expected, expected_scores, _ = ask_sam(predictor, case, tokens < 3, low_res)
    best = int(np.argmax(expected_scores))
    same_masks(masks[0], expected[best : best + 1])
    np.testing.assert_allclose(scores[0], expected_scores[best : best + 1], rtol=0, atol=1e-4)


def test_one_graph_serves_images_of_all_shapes(small_sam: Sam, single: ort.InferenceSession) -> None:
    for shape in SHAPES.values():
        predictor = SamPredictor(small_sam)
        predictor.set_image(image_of(shape))
        masks = ask_onnx(single, predictor, CASES["box and point"], None)[0]
        assert masks.shape == (1, 1, *shape)
        same_masks(masks[0], ask_sam(predictor, CASES["box and point"], False, None)[0])
