"""From masks to numbers: means of groups of cases, and paired tests between models and baselines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np

from samri_tiny.evaluate._answers import BASELINES, BOXES, WAYS, PromptedMask, Way
from samri_tiny.evaluate._cases import VISIBLE
from samri_training.evaluate import Comparison, case_means, compare_family

Unit = Literal["connected", "whole"]
"""What a case is: one connected part, or all of a structure in its slice in one box."""

AREAS = (100, 300, 1000, np.inf)  # Pixels of a slice whose longest side has 256.
BANDS = (VISIBLE, 2.0, 4.0, np.inf)  # Of visibility.


@dataclass(frozen=True)
class Group:
    """What one model made of some cases, beside the baselines.

    Attributes:
        name: Name of the group.
        model: Who answered.
        cases: How many; 0 of a mean of groups.
        dice: Mean, by way of asking.
        baselines: Mean, by baseline and by way of asking.
        score_error: Mean absolute difference of the model's own score from the IoU that it got, for the box.
        trivial: A box alone nearly gives the answer: no margin is claimed.
    """

    name: str
    model: str
    cases: int
    dice: dict[Way, float]
    baselines: dict[str, dict[Way, float]]
    score_error: float
    trivial: bool = False

    def margin(self, way: Way) -> float:
        """How far the model is above the better baseline, with the same box."""
        return self.dice[way] - max(means[way] for means in self.baselines.values())


@dataclass(frozen=True)
class PairedTest:
    """Two answers compared: Wilcoxon's signed-rank test, paired by slice (the mean of its cases)."""

    __test__ = False  # Not one of pytest's.

    way: Way
    first: str
    second: str
    comparison: Comparison
    p_holm: float


def selected(answers: Iterable[PromptedMask], unit: Unit, visible: bool | None = None) -> list[PromptedMask]:
    """Those of one unit, and of visible or invisible structures."""
    return [
        answer
        for answer in answers
        if (answer.case.connected if unit == "connected" else answer.case.whole)
        and visible in (None, answer.case.visible)
    ]


def models_of(answers: Iterable[PromptedMask]) -> list[str]:
    """Who answered, without the baselines, in order."""
    return list(dict.fromkeys(answer.by for answer in answers if answer.by not in BASELINES))


def group(name: str, answers: Sequence[PromptedMask], models: Sequence[str], *, trivial: bool = False) -> list[Group]:
    """The means of some answers, for each model; none where there are no cases."""
    by: dict[str, list[PromptedMask]] = {}
    for answer in answers:
        by.setdefault(answer.by, []).append(answer)
    baselines: dict[str, dict[Way, float]] = {
        baseline: {way: _mean(by[baseline], way) for way in BOXES} for baseline in BASELINES if by
    }
    return [
        Group(
            name,
            model,
            len(by[model]),
            {way: _mean(by[model], way) for way in WAYS},
            baselines,
            float(np.mean([abs(answer.score - answer.iou) for answer in by[model] if answer.score is not None])),
            trivial,
        )
        for model in models
        if model in by
    ]


def mean_of(name: str, groups: Sequence[Group]) -> Group:
    """The unweighted mean of one model's groups."""

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return Group(
        name,
        groups[0].model,
        sum(each.cases for each in groups),
        {way: mean(each.dice[way] for each in groups) for way in WAYS},
        {
            baseline: {way: mean(each.baselines[baseline][way] for each in groups) for way in BOXES}
            for baseline in BASELINES
        },
        mean(each.score_error for each in groups),
    )


def drawn_groups(answers: Sequence[PromptedMask]) -> list[Group]:
    """Groups of the synthetic set: connected structures that are visible, by size, contrast and subject; the rest."""
    models = models_of(answers)
    seen = selected(answers, "connected", True)
    groups = group(f"**visible (CNR at least {VISIBLE:g})**", seen, models)
    for low, high in pairwise(AREAS):
        some = [answer for answer in seen if low < answer.case.area <= high]
        groups += group(f"{low:g} to {high:g} pixels" if np.isfinite(high) else f"above {low:g} pixels", some, models)
    for low, high in pairwise(BANDS):
        some = [answer for answer in seen if low <= answer.case.cnr < high]
        groups += group(f"CNR {low:g} to {high:g}" if np.isfinite(high) else f"CNR above {low:g}", some, models)
    for subject in sorted({answer.case.subject for answer in seen}):
        groups += group(subject, [answer for answer in seen if answer.case.subject == subject], models)
    return groups + group("invisible (CNR below 1)", selected(answers, "connected", False), models)


def real_groups(answers: Sequence[PromptedMask], unit: Unit, trivial: Sequence[str] = ()) -> list[Group]:
    """Groups by structure, and the mean of all structures but the trivial ones; in the order of the cases."""
    models = models_of(answers)
    some = selected(answers, unit)
    groups: list[Group] = []
    for structure in dict.fromkeys(answer.case.structure for answer in some):
        own = [answer for answer in some if answer.case.structure == structure]
        groups += group(structure, own, models, trivial=structure in trivial)
    for model in models:
        counted = [each for each in groups if each.model == model and not each.trivial]
        if len(counted) > 1:
            groups.append(mean_of(f"**mean of the {len(counted)} structures**", counted))
    return groups


def tests(answers: Sequence[PromptedMask]) -> list[PairedTest]:
    """Each model against both baselines with both boxes, and all models with each other in every way of asking.

    p-values are corrected by Holm's method over all of them.
    """
    models = models_of(answers)
    pairs: list[tuple[Way, str, str]] = [
        (way, baseline, model) for way in BOXES for model in models for baseline in BASELINES
    ]
    pairs += [(way, first, second) for way in WAYS for first, second in combinations(models, 2)]
    compared = compare_family(
        {each: (_by_slice(answers, each[0], each[1]), _by_slice(answers, each[0], each[2])) for each in pairs}
    )
    return [PairedTest(*each, comparison, p) for each, (comparison, p) in compared.items()]


def _mean(answers: Sequence[PromptedMask], way: Way) -> float:
    return float(np.mean([answer.dice[way] for answer in answers]))


def _by_slice(answers: Sequence[PromptedMask], way: Way, name: str) -> dict[str, float]:
    own = [answer for answer in answers if answer.by == name]
    slices = [f"{answer.case.subject}\n{answer.case.slice}" for answer in own]
    return case_means(slices, [answer.dice[way] for answer in own])
