"""The files of an evaluation: every case, every number, the report and the plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samri import __version__
from samri_training.evaluate._evaluation import Evaluation, Row
from samri_training.evaluate._metrics import CONVENTIONS
from samri_training.evaluate._plots import write_box_plots
from samri_training.evaluate._report import report
from samri_training.evaluate._summary import Summary

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


def _cells(row: Row, label_name: str) -> list[object]:
    measures, asked = row.measures, row.asked
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
        "" if asked.box is None else " ".join(f"{value:.9g}" for value in asked.box),
        " ".join(f"{value:g}" for value in asked.points.ravel()),
    ]
