"""report.md: Markdown tables like the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from samri_training.evaluate._evaluation import Evaluation
from samri_training.evaluate._metrics import HIGHER_IS_BETTER, METRICS, TITLES, Metric
from samri_training.evaluate._summary import ALL, GROUPS, Group, PairedTest, Summary
from samri_training.prompting import PromptKind

SIZE_TITLES = {ALL: "all", "small": "small (< 0.5 %)", "medium": "medium (0.5-3.5 %)", "large": "large (> 3.5 %)"}
PROMPT_TITLES: dict[PromptKind, str] = {"box": "box", "point": "point", "mixed": "box + point"}

SIGNIFICANT = 0.05

_DIGITS: dict[Metric, int] = {"dice": 3, "iou": 3, "hd": 2, "hd95": 2, "msd": 2}
_HEADS = {metric: f"{TITLES[metric]} {'↑' if HIGHER_IS_BETTER[metric] else '↓'}" for metric in METRICS}


def report(evaluation: Evaluation, summary: Summary, label_names: Mapping[int, str]) -> str:
    """The whole report, as Markdown."""
    parts = ["# Evaluation", _about(evaluation), "## Mean Dice", overview(evaluation, summary)]
    for prompt in evaluation.protocol.prompts:
        groups = [group for group in summary.groups if group.prompt == prompt]
        structures = [group for group in summary.structures if group.prompt == prompt]
        tests = [test for test in summary.tests if test.prompt == prompt]
        parts += [f"## Prompt: {PROMPT_TITLES[prompt]}", "### By size", _by_size(groups)]
        if tests:
            parts += ["### Models compared", _tests(tests)]
        if not summary.dataset_names:
            parts += ["### By structure", _by_structure(structures, label_names)]
        for dataset in summary.dataset_names:
            sizes = [group for group in summary.datasets if (group.prompt, group.dataset) == (prompt, dataset)]
            of_dataset = [group for group in structures if group.dataset == dataset]
            parts += [
                f"### Dataset: {plain_name(dataset or '.')}",
                _by_size(sizes),
                _by_structure(of_dataset, label_names),
            ]
    return "\n\n".join([*parts, "## How it was measured", _method(evaluation, summary)]) + "\n"


def overview(evaluation: Evaluation, summary: Summary) -> str:
    """Mean Dice by size and model: the table to look at first."""
    columns = [(model, prompt) for model in evaluation.models for prompt in evaluation.protocol.prompts]
    means = {(group.model, group.prompt, group.name): group.spreads["dice"].mean for group in summary.groups}
    counts = {group.name: (group.structures, group.cases) for group in summary.groups}
    rows = []
    for size in GROUPS:
        if size not in counts:
            continue
        best = max(means[model, prompt, size] for model, prompt in columns)
        cells = [
            _best(f"{means[each[0], each[1], size]:.3f}", means[each[0], each[1], size] == best) for each in columns
        ]
        rows.append([SIZE_TITLES[size], f"{counts[size][0]} ({counts[size][1]})", *cells])
    heads = [f"{plain_name(model)}, {PROMPT_TITLES[prompt]}" for model, prompt in columns]
    return markdown_table(["size of structure", "structures (cases)", *heads], rows, text_columns=1)


def _about(evaluation: Evaluation) -> str:
    protocol = evaluation.protocol
    left_out = evaluation.structures_too_small
    return (
        f"{len(evaluation.models)} model(s) on {evaluation.structures} structures in {evaluation.slices} slices of "
        f"{len(evaluation.cases)} case(s). Seed {protocol.seed}, box jitter {'on' if protocol.jitter else 'off'}, "
        + ("best-scored of three candidate masks" if protocol.multimask else "the single mask")
        + f". Left out: {left_out} structure(s) under {protocol.min_pixels} pixels, "
        f"{evaluation.slices_without_structures} slice(s) without a structure."
    )


def _by_size(groups: Sequence[Group]) -> str:
    rows = []
    for size in GROUPS:
        of_size = [group for group in groups if group.name == size]
        if not of_size:
            continue
        for group, cells in zip(of_size, _metric_cells(of_size), strict=True):
            counted = f"{group.structures} ({group.cases})"
            rows.append([SIZE_TITLES[size], plain_name(group.model), counted, *cells, str(group.empty)])
    return markdown_table(["size", "model", "structures (cases)", *_HEADS.values(), "empty"], rows, text_columns=2)


def _by_structure(groups: Sequence[Group], label_names: Mapping[int, str]) -> str:
    rows = []
    for label in dict.fromkeys(group.label for group in groups if group.label is not None):
        of_label = [group for group in groups if group.label == label]
        named = f"{label} {plain_name(label_names[label])}" if label in label_names else str(label)
        for group, cells in zip(of_label, _metric_cells(of_label), strict=True):
            counted = f"{group.structures} ({group.cases})"
            rows.append([named, plain_name(group.model), counted, *cells, str(group.empty)])
    return markdown_table(["structure", "model", "structures (cases)", *_HEADS.values(), "empty"], rows, text_columns=2)


def _metric_cells(groups: Sequence[Group]) -> list[list[str]]:
    """Mean and standard deviation of every metric, the best mean of the groups in bold."""
    best = {
        metric: (max if HIGHER_IS_BETTER[metric] else min)(group.spreads[metric].mean for group in groups)
        for metric in METRICS
    }
    return [
        [
            _best(_mean_and_sd(group, metric), len(groups) > 1 and group.spreads[metric].mean == best[metric])
            for metric in METRICS
        ]
        for group in groups
    ]


def _mean_and_sd(group: Group, metric: Metric) -> str:
    spread, digits = group.spreads[metric], _DIGITS[metric]
    return f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f}"


def _tests(tests: Sequence[PairedTest]) -> str:
    """A row for each pair of models and size; of each metric the difference, p after Holm's correction, and effect."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for test in tests:
        row = rows.setdefault(
            (test.size, test.first, test.second),
            [
                f"{plain_name(test.first)} → {plain_name(test.second)}",
                SIZE_TITLES[test.size],
                str(test.comparison.cases),
            ],
        )
        row.append(_best(_test_cell(test), test.p_holm < SIGNIFICANT))
    return markdown_table(["models", "size", "cases", *_HEADS.values()], rows.values(), text_columns=2)


def _test_cell(test: PairedTest) -> str:
    digits = _DIGITS[test.metric]
    comparison = test.comparison
    return f"{comparison.mean_difference:+.{digits}f} (p {p_text(test.p_holm)}, r {comparison.effect_size:+.2f})"


def p_text(p: float) -> str:
    """A p-value as journals print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _method(evaluation: Evaluation, summary: Summary) -> str:
    lines = [
        "Means ± standard deviations are over structures (one label in one slice); the best mean is bold.",
        "HD, HD95 and MSD are distances in mm between outlines, as MONAI computes them: HD95 is the larger of the two "
        "directed 95th percentiles, MSD pools both directions.",
        "*empty* counts predictions without a pixel: Dice and IoU are 0, and all distances the image's diagonal.",
    ]
    if summary.tests:
        lines += [
            "Models are compared by Wilcoxon's signed-rank test, two-sided, paired by case: a case's value is the mean "
            "over its structures, since the slices of one patient are not independent. The number is the mean over "
            "cases of second minus first, *r* the matched-pairs rank-biserial correlation.",
            "*p* is after Holm's correction for all pairs of models, and in the size bins for all pairs in all bins, "
            f"for each prompt and metric; bold is p < {SIGNIFICANT}.",
            *_too_few(evaluation),
        ]
    return "\n".join(f"- {line}" for line in [*lines, *evaluation.notes])


def _too_few(evaluation: Evaluation) -> list[str]:
    """A warning where no outcome whatever could have passed."""
    cases, pairs = len(evaluation.cases), len(evaluation.models) * (len(evaluation.models) - 1) // 2
    smallest = 2.0 ** (1 - cases)  # Of Wilcoxon's test: all differences have one sign.
    if smallest * pairs < SIGNIFICANT:
        return []
    return [
        f"**{cases} case(s) are too few for {pairs} comparison(s): the test can't give p < {SIGNIFICANT}, however "
        "large the difference.**"
    ]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A Markdown table whose first `text_columns` columns are text and whose others are numbers."""
    rule = [":--" if column < text_columns else "--:" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])


def _best(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def plain_name(name: str) -> str:
    """A name that can't break a table."""
    return name.replace("|", "\\|").replace("\n", " ")
