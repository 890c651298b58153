"""One set of test slices, put to all models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from samri.errors import InputError
from samri_runtime import Predictor
from samri_tiny.evaluate._answers import Answer, ask_all
from samri_tiny.evaluate._cases import TestSlice, cases_of, digest

Kind = Literal["drawn", "real"]


@dataclass(frozen=True)
class TestSet:
    """Slices that are reported together.

    Attributes:
        name: In files, and in the frozen list.
        title: Of its part of the report.
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
        answers: Of all cases, in order: of each slice the baselines', then each model's.
        images: Slice, by subject and name, for pictures; those with cases only.
        slices: How many were looked at.
        digests: Slice to `digest`; those with cases only.
    """

    of: TestSet
    answers: list[Answer] = field(default_factory=list)
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
    answers: list[Answer] = []
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
