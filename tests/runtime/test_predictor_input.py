"""Whatever a program passes to `Predictor` and `SamPredictor`: an answer, or an error in one line."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samri import SamriError
from samri.errors import InputError, PromptError
from samri_runtime import Embedding, Predictor, Prompt, SamPredictor
from tests.support.parity import picture


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, provider="cpu")


@pytest.fixture(scope="module")
def embedding(predictor: Predictor) -> Embedding:
    return predictor.encode(picture((64, 80)))


def odd(rng: random.Random, depth: int = 0) -> Any:
    """A value as a program might pass it by mistake."""
    if depth < 3 and rng.random() < 0.6:
        return [odd(rng, depth + 1) for _ in range(rng.randrange(5))]
    made: list[Any] = [None, "12", b"1", 10**400, 2**70, -1, 3.5, float("nan"), True, 1 + 2j, object(), {}, {1, 2}]
    made += [np.zeros((2, 0)), np.zeros((3, 4)), np.zeros(4, "U3"), np.array([None] * 4), np.datetime64("2020-01-01")]
    made += [np.float64(7), np.zeros((1, 2, 3, 4)), np.longdouble("1e4000"), range(4), iter([1, 2]), "box", Ellipsis]
    return rng.choice(made)


@pytest.mark.parametrize("seed", range(4))
def test_malformed_prompts_are_one_plain_line(predictor: Predictor, embedding: Embedding, seed: int) -> None:
    rng = random.Random(seed)
    meta = SamPredictor(predictor)
    meta.set_image(picture((64, 80)))
    for _ in range(100):
        names = rng.sample(["boxes", "points", "point_labels", "prompts", "mask_input"], rng.randint(1, 3))
        drop_in = rng.sample(["point_coords", "point_labels", "box", "mask_input"], rng.randint(1, 3))
        for ask in (
            lambda given: predictor.predict(embedding, **given),
            lambda given, drop_in=drop_in: meta.predict(**dict(zip(drop_in, given.values(), strict=False))),
            lambda given: Prompt.of(*given.values()),
        ):
            given = {name: odd(rng) for name in names}
            try:
                ask(given)
            except SamriError as error:
                assert isinstance(error, PromptError), given
                assert "\n" not in str(error)


@pytest.mark.parametrize("image", [None, "scan.png", [[1, 2], [3]], [["a"]], [[10**400]], {}, np.zeros((4, 4), "M8")])
def test_what_is_no_image_is_one_plain_line(predictor: Predictor, image: Any) -> None:
    for call in (predictor.encode, SamPredictor(predictor).set_image):
        with pytest.raises(InputError):
            call(image)


@pytest.mark.parametrize("given", [5, (1,), (0, "a"), (0, float("nan")), None.__class__])
def test_what_is_no_range_of_intensities_is_one_plain_line(predictor: Predictor, given: Any) -> None:
    with pytest.raises(InputError, match="intensity_range"):
        predictor.encode(picture((20, 30)), intensity_range=given)


def test_nan_in_an_image_is_refused_with_the_way_out(predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"1 NaN or infinite pixels: replace them first .numpy.nan_to_num"):
        predictor.encode(np.array([[1, np.nan], [3, 4]]))


@pytest.mark.parametrize(
    "arguments", [{"boxes": []}, {"boxes": np.zeros((0, 4))}, {"prompts": []}, {"points": []}, {"prompts": ()}]
)
@pytest.mark.parametrize("multimask", [False, True])
def test_no_prompts_have_no_masks(
    predictor: Predictor, embedding: Embedding, arguments: dict[str, Any], multimask: bool
) -> None:
    found = predictor.predict(embedding, **arguments, multimask=multimask)
    candidates = (3,) if multimask else ()
    assert found.masks.shape == found.logits().shape == (0, *candidates, 64, 80)
    assert found.scores.shape == (0, *candidates)
    assert found.masks.dtype == bool
    assert found.low_res_logits.shape[: 1 + len(candidates)] == (0, *candidates)
    assert list(found.each_logits()) == []


def test_logits_come_one_by_one_as_all_at_once(predictor: Predictor, embedding: Embedding) -> None:
    for multimask in (False, True):
        found = predictor.predict(embedding, boxes=[[5, 5, 40, 50], [20, 9, 70, 60]], multimask=multimask)
        np.testing.assert_array_equal(np.stack(list(found.each_logits())), found.logits())
        np.testing.assert_array_equal(found.masks, found.logits() > 0)


def test_a_closed_predictor_gives_its_sessions_back_and_says_that_it_is_closed(bundle: Path) -> None:
    with Predictor(bundle, provider="cpu") as predictor:
        embedding = predictor.encode(picture((30, 40)))
        sessions = [weakref.ref(session) for _, session in predictor._model.sessions()]
        assert predictor.predict(embedding, boxes=[1, 2, 30, 20]).masks.shape == (1, 30, 40)
    gc.collect()
    assert len(sessions) == 2
    assert not any(session() for session in sessions)
    predictor.close()
    for call in (lambda: predictor.encode(picture((30, 40))), lambda: predictor.predict(embedding, boxes=[])):
        with pytest.raises(InputError, match="closed: open another"):
            call()
