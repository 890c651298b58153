"""How a slice is prompted from its neighbor, and where an object ends."""

from __future__ import annotations

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
    """

    mask: Mask
    logits: npt.NDArray[np.float32]
    low_res: npt.NDArray[np.float32]
    score: float


@dataclass(frozen=True)
class Rule:
    """Numbers of the rule. The defaults were chosen with samri-tiny on two real heads (docs/volumes.md).

    Attributes:
        margin: Pixels by which the neighbor's box is widened on each side.
        point: Prompt with a point deep inside the neighbor's mask as well.
        logits: Pass the neighbor's low-resolution logits as `mask_input`.
        score: An object has ended where the model's score is below this part of the prompted slice's.
        agreement: So has one whose mask has a lower Dice with its neighbor's.
        area: So has one whose area is below this part of the prompted slice's.
        weak_score: A slice whose score is below this part of the prompted slice's is named weak.
        weak_agreement: So is one that agrees less with its neighbor.
    """

    margin: float = 0.5
    point: bool = True
    logits: bool = True
    score: float = 0.85
    agreement: float = 0.6
    area: float = 0.1
    weak_score: float = 0.9
    weak_agreement: float = 0.75

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

    def end_of(self, prompted: Answer, neighbor: Answer, answer: Answer) -> str | None:
        """Why the object has ended before this answer, or None if it continues.

        Args:
            prompted: On the keyframe that this direction started from.
            neighbor: On the slice before.
            answer: On this slice.
        """
        pixels = np.count_nonzero(answer.mask)
        if not pixels:
            return "nothing was found"
        if answer.score < self.score * prompted.score:
            return f"the score fell from {prompted.score:.2f} to {answer.score:.2f}"
        if (agreement := overlap(answer.mask, neighbor.mask)) < self.agreement:
            return f"the mask has a Dice of only {agreement:.2f} with its neighbor"
        if pixels < self.area * np.count_nonzero(prompted.mask):
            return f"the area fell below {self.area:.0%} of the prompted slice's"
        return None

    def is_weak(self, prompted: Answer, answer: Answer, agreement: float | None) -> bool:
        """Whether somebody should look at a slice."""
        return answer.score < self.weak_score * prompted.score or (
            agreement is not None and agreement < self.weak_agreement
        )


RULE = Rule()
