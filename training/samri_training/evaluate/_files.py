"""Output files of an evaluation: cases.csv, summary.json, report.md and box plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samri import __version__
from samri.errors import OutputError
from samri.opening import read_json
from samri.ownership import refuse_foreign_content
from samri_training.evaluate._evaluation import Evaluation, EvaluationRow
from samri_training.evaluate._metrics import CONVENTIONS, METRICS, TITLES, Metric
from samri_training.evaluate._report import PROMPT_TITLES, SIZE_TITLES, report
from samri_training.evaluate._summary import GROUPS, Rows, Summary, values
from samri_training.prompting import PROMPT_KINDS, PromptKind

CASES, NUMBERS, REPORT = "cases.csv", "summary.json", "report.md"

COLUMNS = (
    "prompt",
    "model",
    "dataset",
    "case",
    "slice",
    "label",
    "label_name",
    "pixels",
    "percent_of_image",
    "size",
    "dice",
    "iou",
    "hd_mm",
    "hd95_mm",
    "msd_mm",
    "empty",
    "score",
    "box_xyxy",
    "point_xy",
)


def write_files(
    folder: Path,
    evaluation: Evaluation,
    summary: Summary,
    provenance: Mapping[str, Any],
    label_names: Mapping[int, str],
    *,
    plots: bool = True,
) -> list[str]:
    """Write `cases.csv`, `summary.json`, `report.md` and the box plots into `folder`; returns their names."""
    with (folder / CASES).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(_cells(row, label_names.get(row.label, "")) for row in evaluation.rows)
    numbers = to_json(evaluation, summary, provenance)
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(report(evaluation, summary, label_names), encoding="utf-8")
    pictures = write_box_plots(folder, evaluation) if plots else []
    return [CASES, NUMBERS, REPORT, *(picture.name for picture in pictures)]


def to_json(evaluation: Evaluation, summary: Summary, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What `summary.json` holds."""
    protocol = evaluation.protocol
    return {
        "samri": __version__,
        **provenance,
        "protocol": {
            "prompts": list(protocol.prompts),
            "seed": protocol.seed,
            "jitter": protocol.jitter,
            "multimask": protocol.multimask,
            "min_pixels": protocol.min_pixels,
        },
        "conventions": {
            **CONVENTIONS,
            "test": "Wilcoxon signed-rank, two-sided, zeros dropped, on each case's mean over its structures",
            "effect_size": "matched-pairs rank-biserial correlation, positive where the second model's are larger",
            "p_holm": "Holm over all pairs of models, by prompt and metric; the size bins together are another family",
        },
        "notes": list(evaluation.notes),
        "counts": {
            "slices": evaluation.slices,
            "cases": len(evaluation.cases),
            "structures": evaluation.structures,
            "slices_without_structures": evaluation.slices_without_structures,
            "structures_too_small": evaluation.structures_too_small,
        },
        "by_size": [group.to_json() for group in summary.groups],
        "by_dataset": [group.to_json() for group in summary.datasets],
        "by_structure": [group.to_json() for group in summary.structures],
        "tests": [test.to_json() for test in summary.tests],
    }


def _cells(row: EvaluationRow, label_name: str) -> list[object]:
    measures, prompt = row.measures, row.prompt_used
    return [
        row.prompt,
        row.model,
        row.dataset,
        row.case,
        row.slice,
        row.label,
        label_name,
        row.pixels,
        f"{100 * row.share:.4f}",
        row.size,
        *(f"{value:.6f}" for value in (measures.dice, measures.iou, measures.hd, measures.hd95, measures.msd)),
        int(measures.empty),
        f"{row.score:.6f}",
        "" if prompt.box is None else " ".join(f"{value:.9g}" for value in prompt.box),
        " ".join(f"{value:g}" for value in prompt.points.ravel()),
    ]


def check_report(folder: Path) -> None:
    """Refuse to replace a folder that samri-evaluate didn't make, or that holds more than its files.

    Raises:
        OutputError: It says what it holds.
    """
    if not _is_report(folder / NUMBERS):
        raise OutputError(f"{folder} wasn't made by samri-evaluate, so it won't be replaced: name another output")
    plots = [f"{metric}_{prompt}.png" for metric in METRICS for prompt in PROMPT_KINDS]
    refuse_foreign_content(folder, [CASES, NUMBERS, REPORT, *plots], "samri-evaluate")


def _is_report(numbers: Path) -> bool:
    try:
        values: Any = read_json(numbers, error=OutputError, remedy="evaluate again")
    except OutputError:
        return False
    return isinstance(values, dict) and {"samri", "protocol", "conventions", "counts"} <= values.keys()


# Okabe and Ito's palette, safe for color-blind readers.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def write_box_plots(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write `<metric>_<prompt>.png` for every metric and prompt into `folder`; returns their paths."""
    rows = Rows(evaluation.rows)
    files = []
    for prompt in evaluation.protocol.prompts:
        for metric in METRICS:
            files.append(folder / f"{metric}_{prompt}.png")
            _write_box_plot(files[-1], rows, prompt, metric, evaluation.models)
    return files


def _write_box_plot(path: Path, rows: Rows, prompt: PromptKind, metric: Metric, models: tuple[str, ...]) -> None:
    # Not pyplot: a figure of its own needs no display and changes nothing global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    sizes = [size for size in GROUPS if rows.of(prompt, models[0], size)]
    width = 0.8 / len(models)
    figure = Figure(figsize=(max(5.0, 0.9 + len(sizes) * (0.5 + 0.45 * len(models))), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = [_COLORS[number % len(_COLORS)] for number in range(len(models))]
    for number, (model, color) in enumerate(zip(models, colors, strict=True)):
        axes.boxplot(
            [values(rows.of(prompt, model, size), metric) for size in sizes],
            positions=[place + (number - (len(models) - 1) / 2) * width for place in range(len(sizes))],
            widths=0.85 * width,
            patch_artist=True,
            manage_ticks=False,
            showmeans=True,
            boxprops={"facecolor": color, "alpha": 0.65},
            medianprops={"color": "black"},
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
            flierprops={"marker": ".", "markersize": 3, "markerfacecolor": color, "markeredgecolor": color},
        )
    counts = [len(rows.of(prompt, models[0], size)) for size in sizes]
    axes.set_xticks(
        range(len(sizes)), [f"{SIZE_TITLES[size]}\nn = {count}" for size, count in zip(sizes, counts, strict=True)]
    )
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.set_ylabel(TITLES[metric])
    if metric in ("dice", "iou"):
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    axes.set_title(f"{TITLES[metric]}, prompt: {PROMPT_TITLES[prompt]}", fontsize=11)
    # Names such as _nolegend_ or $x$ are a user's to choose: patches with plain labels take them as they are.
    handles = [Patch(facecolor=color, alpha=0.65, label="") for color in colors]
    labels = [model.replace("$", r"\$") for model in models]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(models), 4), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
