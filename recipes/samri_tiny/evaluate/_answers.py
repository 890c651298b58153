"""What models and baselines make of the cases, by Dice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from samri.errors import InputError
from samri.metrics import dice
from samri.postprocessing import upscale_logits
from samri.prompts import Prompt, to_batch
from samri_runtime import Embedding, Prediction, Predictor
from samri_tiny.evaluate._baselines import filled_ellipse, otsu_in_box
from samri_tiny.evaluate._cases import Mask, PromptedStructure, TestSlice, cases_of, digest, middle

Way = Literal["box", "tight box", "refined", "point", "best of three"]
"""How a case is asked for:

- `box`: the box whose sides were moved.
- `tight box`: the true one.
- `refined`: `box`, then once more with a point in the middle of the largest error (positive where pixels are missing,
  negative where they are too many) and the first answer's logits as `mask_input`.
- `point`: one point in the middle of the structure.
- `best of three`: the same point; of the three candidate masks the one that the model itself scores best.
"""
WAYS: tuple[Way, ...] = get_args(Way)
BOXES: tuple[Way, ...] = ("box", "tight box")

Baseline = Literal["ellipse", "Otsu"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


@dataclass(frozen=True, eq=False)
class PromptedMask:
    """The masks of one model or baseline for one structure.

    Attributes:
        case: What was asked for.
        by: The model's name, or the baseline's.
        dice: By the way of asking; a baseline needs a box.
        mask: The answer to `box`, packed by `numpy.packbits`.
        score: The model's own estimate of the IoU of that mask; None of a baseline.
        iou: What it is.
    """

    case: PromptedStructure
    by: str
    dice: Mapping[Way, float]
    mask: npt.NDArray[np.uint8]
    score: float | None
    iou: float

    def unpacked(self) -> Mask:
        """The answer to `box`, (H, W)."""
        shape = self.case.truth.shape
        mask: Mask = np.unpackbits(self.mask, count=shape[0] * shape[1]).reshape(shape).astype(np.bool_)
        return mask


def ask_all(
    test: TestSlice, cases: Sequence[PromptedStructure], predictors: Mapping[str, Predictor]
) -> list[PromptedMask]:
    """The baselines' and all models' answers to the cases of one slice; models with one encoder share its embedding."""
    if not cases:
        return []
    answers = [answer for name in BASELINES for answer in _baseline(name, test.image, cases)]
    embeddings: dict[str | None, Embedding] = {}
    for name, predictor in predictors.items():
        encoder = predictor.manifest.embedding_id(predictor.precision)
        embedding = embeddings.get(encoder) or predictor.encode(test.image)
        if encoder is not None:  # An encoder that doesn't say what it is shares with nobody.
            embeddings[encoder] = embedding
        answers += _model(name, predictor, embedding, cases)
    return answers


def corrective_point(found: Mask, truth: Mask) -> tuple[npt.NDArray[np.float64], int] | None:
    """The middle of the largest connected piece of what is missing or too much, and 1 or 0 for which; None if equal."""
    from scipy.ndimage import label

    largest: tuple[int, Mask, int] | None = None
    for error, kind in ((truth & ~found, 1), (found & ~truth, 0)):
        numbered, count = label(error)
        if count:
            sizes = np.bincount(numbered.ravel())[1:]
            index = int(np.argmax(sizes))
            if largest is None or sizes[index] > largest[0]:
                largest = int(sizes[index]), numbered == index + 1, kind
    return None if largest is None else (middle(largest[1]), largest[2])


def _baseline(name: Baseline, image: npt.NDArray[Any], cases: Sequence[PromptedStructure]) -> list[PromptedMask]:
    answers = []
    for case in cases:
        masks = {
            way: filled_ellipse(box, (case.truth.shape[0], case.truth.shape[1]))
            if name == "ellipse"
            else otsu_in_box(image, box)
            for way, box in zip(BOXES, (case.box, case.tight_box), strict=True)
        }
        answers.append(_answer(case, name, masks, None))
    return answers


def _model(
    name: str, predictor: Predictor, embedding: Embedding, cases: Sequence[PromptedStructure]
) -> list[PromptedMask]:
    box = predictor.predict(embedding, boxes=[case.box for case in cases])
    tight = predictor.predict(embedding, boxes=[case.tight_box for case in cases])
    refined = _refined(predictor, embedding, cases, box)
    point, best = _from_points(predictor, embedding, cases)
    return [
        _answer(
            case,
            name,
            {
                "box": box.masks[row],
                "tight box": tight.masks[row],
                "refined": refined[row],
                "point": point[row],
                "best of three": best[row],
            },
            float(box.scores[row]),
        )
        for row, case in enumerate(cases)
    ]


def _refined(
    predictor: Predictor, embedding: Embedding, cases: Sequence[PromptedStructure], first: Prediction
) -> list[Mask]:
    masks = list(first.masks)
    corrections = [corrective_point(mask, case.truth) for mask, case in zip(masks, cases, strict=True)]
    wrong = [row for row, correction in enumerate(corrections) if correction is not None]
    if not wrong:
        return masks
    prompts = []
    for row in wrong:
        correction = corrections[row]
        assert correction is not None
        prompts.append(Prompt.of([correction[0]], [correction[1]], cases[row].box))
    second = predictor.predict(embedding, prompts=prompts, mask_input=first.low_res_logits[wrong])
    for row, mask in zip(wrong, second.masks, strict=True):
        masks[row] = mask
    return masks


def _from_points(
    predictor: Predictor, embedding: Embedding, cases: Sequence[PromptedStructure]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The single mask, and the best-scored of the three candidates, (B, H, W) each; both come from one decoding."""
    low_res, scores = predictor.decode(embedding, *to_batch([Prompt.of([case.point]) for case in cases]))
    rows, best = np.arange(len(cases)), 1 + scores[:, 1:].argmax(axis=1)
    profile, side = predictor.manifest.profile, predictor.manifest.image_size
    single, chosen = (
        upscale_logits(logits, embedding.shape, profile, side) > 0 for logits in (low_res[:, 0], low_res[rows, best])
    )
    return single, chosen


def _answer(case: PromptedStructure, by: str, masks: Mapping[Way, Mask], score: float | None) -> PromptedMask:
    by_way = {way: dice(mask, case.truth) for way, mask in masks.items()}
    overlap = by_way["box"] / (2 - by_way["box"])  # IoU of a Dice.
    return PromptedMask(case, by, by_way, np.packbits(masks["box"]), score, overlap)


Kind = Literal["drawn", "real"]


@dataclass(frozen=True)
class TestSet:
    """Slices that are reported together.

    Attributes:
        name: In files, and in the frozen list.
        title: Heading of its part of the report.
        about: What the slices are, in one sentence.
        kind: Drawn slices are reported by visibility, size and subject; real ones by structure.
        published: Its cases are in the frozen list.
        trivial: Structures that a box nearly gives: reported without a margin, and in no mean.
    """

    __test__ = False  # Not one of pytest's.

    name: str
    title: str
    about: str
    kind: Kind
    published: bool = False
    trivial: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """What came of one set.

    Attributes:
        of: The set.
        answers: Masks of all cases, in order: for each slice the baselines', then each model's.
        images: Slice, by subject and name, for pictures; those with cases only.
        slices: How many were looked at.
        digests: Slice to `digest`; those with cases only.
    """

    of: TestSet
    answers: list[PromptedMask] = field(default_factory=list)
    images: dict[tuple[str, str], TestSlice] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    slices: int = 0


def evaluate_set(
    of: TestSet,
    slices: Iterable[TestSlice],
    predictors: Mapping[str, Predictor],
    seed: int,
    on_slice: Callable[[], object] = lambda: None,
) -> Results:
    """Put every case of every slice to the baselines and to all models.

    Raises:
        InputError: There is not one case.
    """
    answers: list[PromptedMask] = []
    images: dict[tuple[str, str], TestSlice] = {}
    digests: dict[str, str] = {}
    count = 0
    for test in slices:
        count += 1
        cases = cases_of(test, seed)
        if cases:
            answers += ask_all(test, cases, predictors)
            images[test.subject, test.name] = test
            digests[test.name] = digest(cases)
        on_slice()
    if not answers:
        raise InputError(f"{of.title}: none of {count} slices has a structure above 100 pixels")
    return Results(of, answers, images, digests, count)
