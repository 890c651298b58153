"""How a slice is prompted from its neighbor, and where an object ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samri.prompts import Prompt
from samri_runtime.volume._shapes import Mask, bounding_box, deepest_point, overlap
from samri_runtime.volume._stack import SliceStack

Source = Literal["prompt", "interpolated", "propagated"]


@dataclass(frozen=True, eq=False)
class Question:
    """What the decoder is asked about one slice.

    Attributes:
        number: The slice.
        source: Who prompts: a person, the keyframes on both sides, or the neighboring slice.
        prompt: In pixels of the slice as shown.
        logits: (L, L) low-resolution logits for `mask_input`, or None.
    """

    number: int
    source: Source
    prompt: Prompt
    logits: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What the decoder answered.

    Attributes:
        mask: (H, W).
        logits: (H, W) float32.
        low_res: (L, L) float32.
        score: The model's own estimate of the IoU.
        pixels: (H, W) of the slice.
    """

    mask: Mask
    logits: npt.NDArray[np.float32]
    low_res: npt.NDArray[np.float32]
    score: float
    pixels: npt.NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """Numbers of the rule.

    Attributes:
        margin: Pixels by which the neighbor's box is widened on each side.
        point: Prompt with a point deep inside the neighbor's mask as well.
        logits: Pass the neighbor's low-resolution logits as `mask_input`.
        smallest: An object of fewer pixels has ended.
        agreement: So has one whose Dice with its neighbor is lower.
        growth: So has one whose area is this many times its neighbor's, or that part of it.
        score: So has one of a lower score.
        shift: So has one whose mean intensity differs from the earlier slices' by more of their contrast.
        weak_score: A slice of a lower score is named weak.
        weak_agreement: So is one that agrees less with its neighbor.
    """

    margin: float = 1.0
    point: bool = True
    logits: bool = True
    smallest: int = 4
    agreement: float = 0.5
    growth: float = 3.0
    score: float = 0.5
    shift: float = 0.5
    weak_score: float = 0.7
    weak_agreement: float = 0.7

    def to_json(self) -> dict[str, Any]:
        """The numbers, for provenance."""
        return asdict(self)

    def next_question(self, number: int, neighbor: Answer, stack: SliceStack) -> Question:
        """How slice `number` is asked about, given the answer on the slice beside it."""
        height, width = stack.shape
        box = bounding_box(neighbor.mask) + self.margin * np.array([-1, -1, 1, 1])
        box = box.clip(0, [width, height, width, height])
        points = deepest_point(neighbor.mask)[np.newaxis] if self.point else None
        return Question(number, "propagated", Prompt.of(points, box=box), neighbor.low_res if self.logits else None)

    def between(self, number: int, box: npt.NDArray[np.float64]) -> Question:
        """How a slice between two keyframes is asked about, given the box interpolated between theirs."""
        return Question(number, "interpolated", Prompt(box=box))

    def end_of(self, earlier: Sequence[Answer], answer: Answer, stack: SliceStack) -> str | None:
        """Why the object has ended before this answer, or None if it goes on."""
        pixels, before = np.count_nonzero(answer.mask), np.count_nonzero(earlier[-1].mask)
        if pixels < self.smallest:
            return "nothing was found"
        if answer.score < self.score:
            return f"the model's score fell to {answer.score:.2f}"
        agreement = overlap(answer.mask, earlier[-1].mask)
        if agreement < self.agreement:
            return f"the mask agrees with its neighbor by {agreement:.2f} only"
        if pixels > self.growth * before:
            return f"the area grew {pixels / before:.1f} times"
        return None


RULE = Rule()
