"""How near a lower precision comes to float32, and how near it has to come to be kept."""

from __future__ import annotations

import dataclasses
from typing import Any

from samri.manifest import Precision, Role


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a precision has to reach on real slices, against the float32 graphs of the same bundle.

    Attributes:
        mean_dice: Smallest mean Dice of the masks at the slice's size.
        low_dice: Smallest Dice that 95 % of the masks have to reach.
        logits: Largest difference of low-resolution logits: root mean square, as a fraction of their deviation.
        scores: Largest mean difference of the predicted IoU.
    """

    mean_dice: float
    low_dice: float
    logits: float
    scores: float


BARS: dict[Precision, Bar] = {
    "fp16": Bar(mean_dice=0.998, low_dice=0.99, logits=0.01, scores=0.005),
    "int8": Bar(mean_dice=0.98, low_dice=0.9, logits=0.15, scores=0.03),
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the comparison on real slices found.

    Attributes:
        pictures: The slices.
        masks: How many masks were compared.
        masks_without_dice: How many of them are almost empty or full in float32, so that Dice says nothing.
        embedding: Difference of the embeddings, root mean square, as a fraction of their standard deviation.
        logits: As in `Bar`.
        largest_logit: The largest difference of one logit, as a fraction of the range.
        scores: Mean difference of the predicted IoU.
        largest_score: The largest.
        mean_dice: Of the masks that Dice says something about; None if there are none.
        low_dice: The Dice that 95 % of them reach.
        smallest_dice: Of them all.
        overflowing: Tensors that came too near to half precision's end and stayed float32, with their largest values.
    """

    pictures: tuple[str, ...]
    masks: int
    masks_without_dice: int
    embedding: float
    logits: float
    largest_logit: float
    scores: float
    largest_score: float
    mean_dice: float | None
    low_dice: float | None
    smallest_dice: float | None
    overflowing: dict[str, float]


@dataclasses.dataclass(frozen=True)
class VariantResult:
    """One lower precision: what it measured, and whether it is in the bundle.

    Attributes:
        precision: Of the graphs.
        roles: The graphs that it has; those it lacks are float32's.
        kept: Whether they are in the bundle.
        measured: None when verification was off.
    """

    precision: Precision
    roles: tuple[Role, ...]
    kept: bool
    measured: Measured | None

    def failures(self) -> list[str]:
        """What lies beyond the bar, in words. Not a number lies beyond any."""
        found, bar = self.measured, BARS[self.precision]
        if found is None:
            return [f"{self.precision} wasn't compared with float32 (--verify off)"]
        failed = []
        if found.mean_dice is not None and not found.mean_dice >= bar.mean_dice:
            failed.append(f"mean Dice of the masks is {found.mean_dice:.4f} (at least {bar.mean_dice:g})")
        if found.low_dice is not None and not found.low_dice >= bar.low_dice:
            failed.append(f"5 % of the masks have a Dice below {found.low_dice:.4f} (at least {bar.low_dice:g})")
        if not found.logits <= bar.logits:
            failed.append(f"logits differ by {found.logits:.3f} of their deviation (at most {bar.logits:g})")
        if not found.scores <= bar.scores:
            failed.append(f"scores differ by {found.scores:.4f} (at most {bar.scores:g})")
        return failed

    def lines(self) -> list[str]:
        """For the screen."""
        failed = self.failures()
        verdict = "kept" if self.kept else "not kept"
        if self.measured is None:
            return [f"{self.precision}: {verdict}: {failed[0]}"]
        found = self.measured
        dice = "no mask that Dice says something about" if found.mean_dice is None else f"Dice {found.mean_dice:.4f}"
        lines = [
            f"{self.precision} against fp32, {len(found.pictures)} real slices, {found.masks} masks: {dice}, "
            f"embedding {found.embedding:.2%}, logits {found.logits:.2%}, scores {found.scores:.4f}: {verdict}"
        ]
        lines += [f"{self.precision} is below its bar: {failure}" for failure in failed]
        if found.overflowing:
            lines.append(f"{self.precision}: {len(found.overflowing)} tensors stay float32, being too large for fp16")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        return {
            "precision": self.precision,
            "roles": list(self.roles),
            "kept": self.kept,
            "reference": "the float32 graphs, ONNX Runtime, CPUExecutionProvider",
            "bar": dataclasses.asdict(BARS[self.precision]),
            "measured": None if self.measured is None else dataclasses.asdict(self.measured),
            "below_bar": self.failures(),
        }
