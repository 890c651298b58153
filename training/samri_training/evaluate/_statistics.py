"""Paired comparison of models by case: Wilcoxon's test, effect size, Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Key = TypeVar("_Key")

_DIGITS = 9  # Differences that agree to so many decimals are ties: beyond them is only rounding.


@dataclass(frozen=True)
class Spread:
    """Where values lie. `sd` is the sample's (n - 1), 0 for a single value."""

    mean: float
    sd: float
    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two models over the cases that both have.

    Attributes:
        cases: How many pairs.
        differing: How many of them differ; the test is on these.
        mean_difference: Mean of second minus first.
        p: Two-sided p of Wilcoxon's signed-rank test; 1 when no pair differs.
        effect_size: Matched-pairs rank-biserial correlation, -1 to 1: the share of the ranks' sum where the second is
            larger, minus the share where the first is.
    """

    cases: int
    differing: int
    mean_difference: float
    p: float
    effect_size: float


def spread(values: npt.ArrayLike) -> Spread:
    """Summarize at least one finite value."""
    numbers = np.asarray(values, dtype=np.float64)
    q1, median, q3 = (float(value) for value in np.percentile(numbers, (25, 50, 75)))
    sd = float(numbers.std(ddof=1)) if numbers.size > 1 else 0.0
    return Spread(float(numbers.mean()), sd, median, q1, q3)


def case_means(cases: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The mean of each case's values: one number per case, whatever the number of its slices and structures."""
    grouped: dict[str, list[float]] = {}
    for case, value in zip(cases, values, strict=True):
        grouped.setdefault(case, []).append(value)
    return {case: float(np.mean(numbers)) for case, numbers in grouped.items()}


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> Comparison:
    """Wilcoxon's signed-rank test on the cases of both mappings, at least one.

    Cases without a difference are dropped, as Wilcoxon did. The p-value is exact for few cases without ties, as
    `scipy.stats.wilcoxon` decides.
    """
    from scipy.stats import wilcoxon

    shared = [case for case in first if case in second]
    differences = np.array([second[case] - first[case] for case in shared])
    rounded = np.round(differences, _DIGITS)
    rounded = rounded[rounded != 0]
    p = float(wilcoxon(rounded).pvalue) if len(rounded) else 1.0
    return Comparison(len(shared), len(rounded), float(differences.mean()), p, rank_biserial(rounded))


def compare_family(
    pairs: Mapping[_Key, tuple[Mapping[str, float], Mapping[str, float]]],
) -> dict[_Key, tuple[Comparison, float]]:
    """`compare` each pair of one family: the comparison, and its p after Holm's correction over all of them."""
    compared = {key: compare(first, second) for key, (first, second) in pairs.items()}
    corrected = holm([comparison.p for comparison in compared.values()])
    return {key: (comparison, p) for (key, comparison), p in zip(compared.items(), corrected, strict=True)}


def rank_biserial(differences: npt.ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014): (R+ - R-) / (R+ + R-) over ranks of non-zero |differences|.

    1 when all differences are positive, -1 when all are negative, 0 when there are none.
    """
    from scipy.stats import rankdata

    numbers = np.asarray(differences, dtype=np.float64)
    numbers = numbers[numbers != 0]
    if not len(numbers):
        return 0.0
    ranks = rankdata(np.abs(numbers))
    return float((ranks * np.sign(numbers)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in their order: adjusted p-values, at most 1."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = highest
    return adjusted
