"""Numbers of a report: means by group of structures, and tests between models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from samri_training.evaluate._evaluation import Evaluation, EvaluationRow
from samri_training.evaluate._metrics import METRICS, Metric
from samri_training.evaluate._statistics import Comparison, Spread, case_means, compare_family, spread
from samri_training.prompting import PromptKind
from samri_training.slices import SIZES

ALL = "all"
GROUPS: tuple[str, ...] = (ALL, *SIZES)


@dataclass(frozen=True)
class Group:
    """One model's results for a set of structures.

    Attributes:
        name: `all`, or a size bin.
        label: The structure; None when all are taken together.
        dataset: Where it comes from; None when all datasets are taken together.
        structures: How many were evaluated, and what `spreads` is over.
        cases: How many patients or scans they come from.
        empty: Predictions without a single pixel.
        spreads: Each metric over the structures.
        case_mean: Each metric's mean over the cases' means.
        score_error: Mean absolute difference between the model's own score and the IoU that it got.
    """

    prompt: PromptKind
    model: str
    name: str
    label: int | None
    dataset: str | None
    structures: int
    cases: int
    empty: int
    spreads: dict[Metric, Spread]
    case_mean: dict[Metric, float]
    score_error: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        metrics = {
            metric: {**asdict(self.spreads[metric]), "mean_of_cases": self.case_mean[metric]} for metric in METRICS
        }
        return {
            "prompt": self.prompt,
            "model": self.model,
            "size": self.name,
            "label": self.label,
            "dataset": self.dataset,
            "structures": self.structures,
            "cases": self.cases,
            "empty": self.empty,
            "score_error": self.score_error,
            "metrics": metrics,
        }


@dataclass(frozen=True)
class PairedTest:
    """Two models compared on one metric in one size bin, `first` against `second`.

    Attributes:
        p_holm: Corrected for all pairs of models; in a size bin, for all pairs in all bins.
    """

    __test__ = False  # Not one of pytest's.

    prompt: PromptKind
    size: str
    metric: Metric
    first: str
    second: str
    comparison: Comparison
    p_holm: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "size": self.size,
            "metric": self.metric,
            "first": self.first,
            "second": self.second,
            **asdict(self.comparison),
            "p_holm": self.p_holm,
        }


@dataclass(frozen=True)
class Summary:
    """Everything that the tables and plots show.

    Attributes:
        groups: By prompt, size bin and model.
        structures: By prompt, dataset, label and model: one number means another structure in each dataset.
        datasets: By prompt, dataset, size bin and model, where there are several datasets.
        tests: Between all pairs of models.
    """

    groups: tuple[Group, ...]
    structures: tuple[Group, ...]
    tests: tuple[PairedTest, ...]
    datasets: tuple[Group, ...] = ()

    @property
    def dataset_names(self) -> list[str]:
        """The datasets, if there are several."""
        return list(dict.fromkeys(group.dataset for group in self.datasets if group.dataset is not None))


def summarize(evaluation: Evaluation) -> Summary:
    """Group the rows and compare the models."""
    rows = Rows(evaluation.rows)
    labels = sorted({(row.dataset, row.label) for row in evaluation.rows})
    names = list(dict.fromkeys(dataset for dataset, _ in labels))
    groups, structures, datasets, tests = [], [], [], []
    for prompt in evaluation.protocol.prompts:
        for name in GROUPS:
            groups += [_group(rows.of(prompt, model, name), name) for model in evaluation.models]
        for dataset, label in labels:
            structures += [
                _group(rows.of(prompt, model, ALL, label, dataset), ALL, label, dataset) for model in evaluation.models
            ]
        for dataset in names if len(names) > 1 else []:
            for name in GROUPS:
                datasets += [
                    _group(rows.of(prompt, model, name, None, dataset), name, None, dataset)
                    for model in evaluation.models
                ]
        for metric in METRICS:
            # The question is answered on all structures; the bins, which share its data, are a family of their own.
            tests += _family(rows, prompt, metric, (ALL,), evaluation.models)
            tests += _family(rows, prompt, metric, SIZES, evaluation.models)
    return Summary(_present(groups), _present(structures), tuple(tests), _present(datasets))


def _present(groups: Iterable[Group | None]) -> tuple[Group, ...]:
    return tuple(group for group in groups if group)


class Rows:
    """Rows by prompt and model; all models have the same structures in the same order."""

    def __init__(self, rows: Iterable[EvaluationRow]) -> None:
        self._by_model: dict[tuple[PromptKind, str], list[EvaluationRow]] = {}
        for row in rows:
            self._by_model.setdefault((row.prompt, row.model), []).append(row)

    def of(
        self, prompt: PromptKind, model: str, size: str = ALL, label: int | None = None, dataset: str | None = None
    ) -> list[EvaluationRow]:
        """Rows of a size bin (or `all`), a label and a dataset (or None for all of them)."""
        return [
            row
            for row in self._by_model[prompt, model]
            if size in (ALL, row.size)
            and (label is None or row.label == label)
            and (dataset is None or row.dataset == dataset)
        ]


def values(rows: Sequence[EvaluationRow], metric: Metric) -> list[float]:
    """One metric of all rows."""
    return [float(getattr(row.measures, metric)) for row in rows]


def _group(rows: list[EvaluationRow], name: str, label: int | None = None, dataset: str | None = None) -> Group | None:
    if not rows:
        return None
    cases = [row.case for row in rows]
    return Group(
        prompt=rows[0].prompt,
        model=rows[0].model,
        name=name,
        label=label,
        dataset=dataset,
        structures=len(rows),
        cases=len(set(cases)),
        empty=sum(row.measures.empty for row in rows),
        spreads={metric: spread(values(rows, metric)) for metric in METRICS},
        case_mean={
            metric: float(np.mean(list(case_means(cases, values(rows, metric)).values()))) for metric in METRICS
        },
        score_error=float(np.mean([abs(row.score - row.measures.iou) for row in rows])),
    )


def _family(
    rows: Rows, prompt: PromptKind, metric: Metric, sizes: Sequence[str], models: Sequence[str]
) -> list[PairedTest]:
    """All pairs of models in those size bins that have structures: one family for Holm's correction."""
    pairs: dict[tuple[str, str, str], tuple[dict[str, float], dict[str, float]]] = {}
    for size in sizes:
        means = {}
        for model in models:
            model_rows = rows.of(prompt, model, size)
            means[model] = case_means([row.case for row in model_rows], values(model_rows, metric))
        pairs |= {
            (size, first, second): (means[first], means[second])
            for first, second in combinations(models, 2)
            if means[first]
        }
    return [
        PairedTest(prompt, size, metric, first, second, comparison, p)
        for (size, first, second), (comparison, p) in compare_family(pairs).items()
    ]
