"""Results of an export's comparisons, in numbers, in words and as a table.

The fp32 graphs are compared with the model, within `TOLERANCES`; lower precisions with fp32, within `THRESHOLDS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from samri.manifest import Precision, Role
from samri.metrics import dice
from samri_export._choices import Level
from samri_export._reference import DecoderOutput, Floats


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far an exported graph may be from its model.

    Attributes:
        model_input: Largest difference of the preprocessed image, in its own units (standard deviations).
        embedding: Largest difference of an embedding, as a fraction of the embedding's range.
        logits: The same for low-resolution logits, and for those at the image's size.
        scores: Largest difference of a predicted IoU.
        dice: Smallest Dice of a mask at the image's size. A pixel whose reference lies within `logits` of 0, as a
            fraction of its own mask's range, may fall on either side, and doesn't count against it.
    """

    model_input: float
    embedding: float
    logits: float
    scores: float
    dice: float


TOLERANCES: dict[Precision, Tolerance] = {"fp32": Tolerance(1e-4, 1e-3, 1e-3, 1e-3, 0.999)}

# A mask that covers less than this, or all but this, can lose Dice with a handful of pixels, and an empty or full one
# agrees with anything: for these, Dice is uninformative.
_LEAST_COVERAGE = 0.005

_HEADINGS = ("picture", "", "graph", "prompts", "difference", "of scores", "Dice", "masks cover")


@dataclasses.dataclass(frozen=True)
class EncoderResult:
    """Comparison of the encoder on one slice."""

    picture: str
    shape: tuple[int, int]
    precision: Precision
    model_input: float
    embedding: float


@dataclasses.dataclass(frozen=True)
class DecoderResult:
    """Comparison of a decoder on one batch of prompts on a slice.

    Attributes:
        graph: Role of the decoder.
        logits: Largest difference of low-resolution logits, as a fraction of the reference's range.
        upscaled: The same at the picture's size: of logits, or for `medsam` of probabilities.
        scores: Largest difference.
        dice: Smallest Dice, without almost empty and almost full masks; None if no other is left.
        coverage: The smallest and largest fraction of the picture that a reference mask covers.
        masks: How many masks were compared.
        masks_without_dice: How many of them are almost empty or almost full.
    """

    picture: str
    case: str
    graph: str
    precision: Precision
    prompts: int
    logits: float
    upscaled: float
    scores: float
    dice: float | None
    coverage: tuple[float, float]
    masks: int
    masks_without_dice: int


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Thresholds of a precision on real slices, against the float32 graphs of the same bundle.

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


THRESHOLDS: dict[Precision, Threshold] = {
    "fp16": Threshold(mean_dice=0.998, low_dice=0.99, logits=0.01, scores=0.005),
    "int8": Threshold(mean_dice=0.98, low_dice=0.9, logits=0.15, scores=0.03),
}


@dataclasses.dataclass(frozen=True)
class PrecisionMeasurement:
    """Result of the comparison on real slices.

    Attributes:
        pictures: The slices.
        masks: How many masks were compared.
        masks_without_dice: How many of them are almost empty or full in float32, so that Dice is uninformative.
        embedding: Difference of the embeddings, root mean square, as a fraction of their standard deviation.
        logits: As in `Threshold`.
        largest_logit: The largest difference of one logit, as a fraction of the range.
        scores: Mean difference of the predicted IoU.
        largest_score: The largest.
        mean_dice: Mean Dice, without almost empty and almost full masks; None if no other is left.
        low_dice: The Dice that 95 % of those masks reach.
        smallest_dice: Smallest Dice of those masks.
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
class PrecisionResult:
    """One lower precision: its measurement, and whether it is in the bundle.

    Attributes:
        precision: Precision of the graphs.
        roles: The graphs that it has; those it lacks are float32's.
        included: Whether they are in the bundle.
        measured: None when verification was off.
    """

    precision: Precision
    roles: tuple[Role, ...]
    included: bool
    measured: PrecisionMeasurement | None

    def failures(self) -> list[str]:
        """What misses the threshold, in words. Not a number lies beyond any."""
        found, threshold = self.measured, THRESHOLDS[self.precision]
        if found is None:
            return [f"{self.precision} wasn't compared with float32 (--verify off)"]
        failed = []
        if found.mean_dice is not None and not found.mean_dice >= threshold.mean_dice:
            failed.append(f"mean Dice of the masks is {found.mean_dice:.4f} (at least {threshold.mean_dice:g})")
        if found.low_dice is not None and not found.low_dice >= threshold.low_dice:
            failed.append(f"5 % of the masks have a Dice below {found.low_dice:.4f} (at least {threshold.low_dice:g})")
        if not found.logits <= threshold.logits:
            failed.append(f"logits differ by {found.logits:.3f} of their deviation (at most {threshold.logits:g})")
        if not found.scores <= threshold.scores:
            failed.append(f"scores differ by {found.scores:.4f} (at most {threshold.scores:g})")
        return failed

    def lines(self) -> list[str]:
        """For the screen."""
        failures = self.failures()
        verdict = "kept" if self.included else "not kept"
        if self.measured is None:
            return [f"{self.precision}: {verdict}: {failures[0]}"]
        measured = self.measured
        dice = "no mask with an informative Dice" if measured.mean_dice is None else f"Dice {measured.mean_dice:.4f}"
        lines = [
            f"{self.precision} against fp32, {len(measured.pictures)} real slices, {measured.masks} masks: {dice}, "
            f"embedding {measured.embedding:.2%}, logits {measured.logits:.2%}, scores {measured.scores:.4f}: {verdict}"
        ]
        lines += [f"{self.precision} is below its threshold: {failure}" for failure in failures]
        if measured.overflowing:
            lines.append(
                f"{self.precision}: {len(measured.overflowing)} tensors stay float32, being too large for fp16"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        return {
            "precision": self.precision,
            "roles": list(self.roles),
            "kept": self.included,
            "reference": "the float32 graphs, ONNX Runtime, CPUExecutionProvider",
            "bar": dataclasses.asdict(THRESHOLDS[self.precision]),
            "measured": None if self.measured is None else dataclasses.asdict(self.measured),
            "below_bar": self.failures(),
        }


@dataclasses.dataclass(frozen=True)
class VerificationReport:
    """All comparisons of an export: of the float32 graphs with the model, and of lower precisions with those."""

    level: Level
    pictures: tuple[EncoderResult, ...]
    cases: tuple[DecoderResult, ...]
    variants: tuple[PrecisionResult, ...] = ()

    def failures(self) -> list[str]:
        """What lies beyond its tolerance and where, in words. Not a number lies beyond any."""
        found = []
        for result in self.pictures:
            limit = TOLERANCES[result.precision]
            where = f"{result.picture}, {result.precision} encoder"
            if not result.model_input <= limit.model_input:
                found.append(f"{where}: model input differs by {result.model_input:.1e} (limit {limit.model_input:g})")
            if not result.embedding <= limit.embedding:
                found.append(
                    f"{where}: embedding differs by {result.embedding:.1e} of its range (limit {limit.embedding:g})"
                )
        for case in self.cases:
            limit = TOLERANCES[case.precision]
            where = f"{case.picture}, {case.precision} {case.graph}, {case.case}"
            if not case.logits <= limit.logits:
                found.append(f"{where}: logits differ by {case.logits:.1e} of their range (limit {limit.logits:g})")
            if not case.upscaled <= limit.logits:
                found.append(
                    f"{where}: the upscaled mask differs by {case.upscaled:.1e} of its range (limit {limit.logits:g})"
                )
            if not case.scores <= limit.scores:
                found.append(f"{where}: scores differ by {case.scores:.1e} (limit {limit.scores:g})")
            if case.dice is not None and not case.dice >= limit.dice:
                found.append(f"{where}: Dice of the masks is {case.dice:.4f} (limit {limit.dice:g})")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        dice = [case.dice for case in self.cases if case.dice is not None]
        precisions = {result.precision for result in self.pictures}
        return {
            "level": self.level,
            "reference": "segment-anything (PyTorch, CPU)",
            "compared_with": "ONNX Runtime, CPUExecutionProvider",
            "tolerance": {precision: dataclasses.asdict(TOLERANCES[precision]) for precision in sorted(precisions)},
            "largest_embedding_difference": max((result.embedding for result in self.pictures), default=None),
            "largest_logit_difference": max((max(case.logits, case.upscaled) for case in self.cases), default=None),
            "largest_score_difference": max((case.scores for case in self.cases), default=None),
            "smallest_dice": min(dice, default=None),
            "masks": sum(case.masks for case in self.cases),
            "masks_without_dice": sum(case.masks_without_dice for case in self.cases),
            "pictures": [dataclasses.asdict(result) for result in self.pictures],
            "cases": [dataclasses.asdict(case) for case in self.cases],
            "variants": [variant.to_json() for variant in self.variants],
        }

    def table(self) -> list[str]:
        """Lines for the screen: the worst of each graph on each picture."""
        if self.level == "off":
            return ["not verified (--verify off)", *(line for variant in self.variants for line in variant.lines())]
        rows: list[tuple[str, ...]] = [_HEADINGS]
        for result in self.pictures:
            picture = f"{result.picture}, {result.shape[1]} x {result.shape[0]}"
            rows.append((picture, result.precision, "encoder", "", f"{result.embedding:.1e}", "", "", ""))
            results = [
                case for case in self.cases if (case.picture, case.precision) == (result.picture, result.precision)
            ]
            for graph in dict.fromkeys(case.graph for case in results):
                rows.append(
                    (picture, result.precision, graph, *_worst([case for case in results if case.graph == graph]))
                )
        lines = _aligned(rows)
        undecided = sum(case.masks_without_dice for case in self.cases)
        if undecided:
            total = sum(case.masks for case in self.cases)
            lines.append(f"{undecided} of {total} masks are almost empty or full: judged by their logits, not by Dice")
        return [*lines, *(line for variant in self.variants for line in variant.lines())]


def compare(
    reference: DecoderOutput, exported: DecoderOutput, *, picture: str, case: str, graph: str, precision: Precision
) -> DecoderResult:
    """The differences between two answers to the same prompts."""
    coverage = reference.masks.mean(axis=(2, 3))
    dices = informative_dice(reference, exported, TOLERANCES[precision].logits)
    return DecoderResult(
        picture=picture,
        case=case,
        graph=graph,
        precision=precision,
        prompts=len(coverage),
        logits=relative_difference(reference.low_res, exported.low_res),
        upscaled=relative_difference(reference.at_size, exported.at_size),
        scores=float(np.abs(reference.scores - exported.scores).max()),
        dice=float(dices.min()) if dices.size else None,
        coverage=(float(coverage.min()), float(coverage.max())),
        masks=int(coverage.size),
        masks_without_dice=int(coverage.size - dices.size),
    )


def informative_dice(reference: DecoderOutput, other: DecoderOutput, tolerance: float = 0.0) -> Floats:
    """Dice of those masks at the picture's size whose reference is neither almost empty nor almost full: (n,).

    Args:
        reference: Its masks are the right ones.
        other: Compared with it.
        tolerance: Pixels whose reference lies so near to 0, as a fraction of the range of their mask, agree with
            anything: in a small mask one of them would decide.
    """
    values = reference.at_size
    spread = values.max(axis=(2, 3), keepdims=True) - values.min(axis=(2, 3), keepdims=True)
    first = reference.masks
    second = np.where(np.abs(values) <= tolerance * spread, first, other.masks) if tolerance else other.masks
    coverage = first.mean(axis=(2, 3))
    telling = (coverage >= _LEAST_COVERAGE) & (coverage <= 1 - _LEAST_COVERAGE)
    return np.array([dice(*pair) for pair in zip(first[telling], second[telling], strict=True)], np.float32)


def relative_difference(reference: Floats, other: Floats) -> float:
    """The largest difference as a fraction of the reference's range; NaN if anything is."""
    spread = float(reference.max() - reference.min())
    largest = float(np.abs(reference - other).max())
    return largest / spread if spread > 0 else largest


def _worst(cases: Sequence[DecoderResult]) -> tuple[str, ...]:
    dice = [case.dice for case in cases if case.dice is not None]
    low = min(case.coverage[0] for case in cases)
    high = max(case.coverage[1] for case in cases)
    return (
        str(sum(case.prompts for case in cases)),
        f"{max(max(case.logits, case.upscaled) for case in cases):.1e}",
        f"{max(case.scores for case in cases):.1e}",
        f"{min(dice):.4f}" if dice else "-",
        f"{100 * low:.0f}-{100 * high:.0f} %",
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
