from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from samri_training.evaluate import case_means, compare, holm, rank_biserial, spread


def exact_p(differences: list[float]) -> float:
    """Two-sided p of the signed-rank sum, by listing all signs."""
    ranks = rankdata(np.abs(differences))
    observed = ranks[np.array(differences) > 0].sum()
    sums = np.array([ranks[np.array(signs)].sum() for signs in product((False, True), repeat=len(ranks))])
    return float(min(1.0, 2 * min((sums >= observed).mean(), (sums <= observed).mean())))


def named(values: list[float]) -> dict[str, float]:
    return {f"case{number}": value for number, value in enumerate(values)}


@pytest.mark.parametrize(
    "differences", [[0.1, 0.2, 0.3, -0.05, 0.4, 0.25], [1, 2, 3, 4, 5, 6, -7, 8], [0.5, 0.5, -0.5, 0.25, 1.0, 2.0]]
)
def test_the_p_value_is_the_exact_one_for_few_cases(differences: list[float]) -> None:
    comparison = compare(named([0.0] * len(differences)), named(differences))
    assert comparison.p == pytest.approx(exact_p(differences))
    assert comparison.mean_difference == pytest.approx(np.mean(differences))
    assert comparison.cases == comparison.differing == len(differences)


def test_cases_without_a_difference_do_not_count() -> None:
    some = compare(named([0.5, 0.5, 0.5, 0.5]), named([0.5, 0.6, 0.7, 0.9]))
    assert (some.cases, some.differing) == (4, 3)
    assert some.p == pytest.approx(0.25)
    none = compare(named([0.5, 0.6]), named([0.5, 0.6]))
    assert (none.cases, none.differing, none.p, none.effect_size, none.mean_difference) == (2, 0, 1.0, 0.0, 0.0)


def test_rounding_makes_no_difference() -> None:
    assert compare(named([0.1 + 0.2]), named([0.3])).differing == 0


def test_pairs_are_made_by_case_whatever_their_order() -> None:
    first = {"a": 0.1, "b": 0.5, "c": 0.9, "lost": 0.0}
    second = {"c": 1.0, "a": 0.2, "b": 0.6}
    comparison = compare(first, second)
    assert comparison.cases == 3
    assert comparison.mean_difference == pytest.approx(0.1)
    assert comparison.effect_size == 1.0


def test_five_cases_can_never_be_significant_and_six_can() -> None:
    assert compare(named([0.0] * 5), named([1, 2, 3, 4, 5])).p > 0.05
    assert compare(named([0.0] * 6), named([1, 2, 3, 4, 5, 6])).p < 0.05


def test_the_effect_size_is_the_balance_of_the_ranks() -> None:
    # Ranks 1, 2, 3, 4: the negative one has rank 2, so (1 + 3 + 4 - 2) / 10.
    assert rank_biserial([0.1, -0.2, 0.3, 0.4]) == pytest.approx(0.6)
    assert rank_biserial([-3, -1, -2]) == -1.0
    assert rank_biserial([1, -1]) == 0.0
    assert rank_biserial([0.0, 0.0]) == 0.0


@given(st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=12))
def test_the_effect_size_turns_its_sign_with_the_models(differences: list[float]) -> None:
    assert rank_biserial(differences) == pytest.approx(-rank_biserial([-value for value in differences]))
    assert -1 <= rank_biserial(differences) <= 1


def test_holm_gives_the_textbook_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(holm(p_values))[order]) >= 0).all()


def test_a_case_counts_once_whatever_the_number_of_its_slices() -> None:
    assert case_means(["a", "b", "a", "a"], [1.0, 5.0, 2.0, 3.0]) == {"a": 2.0, "b": 5.0}


def test_many_slices_of_few_patients_are_no_evidence() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{number}" for number in range(4) for _ in range(200)]
    first = rng.normal(0.7, 0.01, 800)
    second = first + np.repeat([0.02, 0.03, 0.01, -0.02], 200)
    by_slice = wilcoxon(second - first).pvalue
    by_patient = compare(case_means(patients, first.tolist()), case_means(patients, second.tolist())).p
    assert by_slice < 1e-10
    assert by_patient > 0.3


def test_a_single_value_has_no_spread() -> None:
    alone = spread([0.4])
    assert (alone.mean, alone.sd, alone.median, alone.q1, alone.q3) == (0.4, 0.0, 0.4, 0.4, 0.4)
    several = spread([1, 2, 3, 4])
    assert (several.mean, several.median, several.q1, several.q3) == (2.5, 2.5, 1.75, 3.25)
    assert several.sd == pytest.approx(np.std([1, 2, 3, 4], ddof=1))
