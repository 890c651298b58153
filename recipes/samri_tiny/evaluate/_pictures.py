"""Contact sheets: what the first model makes of a spread of cases, good, middling and bad. Look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samri_tiny.evaluate._answers import BASELINES, PromptedMask, Results
from samri_tiny.evaluate._summary import models_of, selected

_COLUMNS = 6
_DRAWN = 24
_QUANTILES = (0.95, 0.5, 0.05)  # Of a structure's cases, by Dice: good, middling, bad.
# Okabe and Ito's colors, which people with any common color vision tell apart.
_TRUTH, _FOUND, _BOX = "#009E73", "#E69F00", "#56B4E9"


def write_contact_sheet(path: Path, results: Results) -> None:
    """Outlines of truth and answer, and the box that was asked with, on parts of the slices around it.

    A real scan shows the cases at the 95th, 50th and 5th percentile of Dice of each structure; drawn slices show the
    visible cases at 24 percentiles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = _chosen(results)
    rows = -(-len(chosen) // _COLUMNS)
    figure = Figure(figsize=(2.6 * _COLUMNS, 2.95 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    baselines = {(answer.case, answer.by): answer.dice["box"] for answer in results.answers if answer.by in BASELINES}
    for number, answer in enumerate(chosen):
        axes = figure.add_subplot(rows, _COLUMNS, number + 1)
        _draw(axes, results, answer)
        others = ", ".join(f"{name} {baselines[answer.case, name]:.2f}" for name in BASELINES)
        axes.set_title(
            f"{answer.case.structure}, {answer.case.slice.rpartition('/')[2]}\n"
            f"Dice {answer.dice['box']:.2f} ({others})",
            fontsize=8,
        )
    figure.suptitle(f"{results.of.title}: truth green, answer orange, box blue", fontsize=10)
    figure.savefig(path, dpi=90)


def _chosen(results: Results) -> list[PromptedMask]:
    model = models_of(results.answers)[0]
    own = [answer for answer in selected(results.answers, "connected") if answer.by == model]
    if results.of.kind == "drawn":
        seen = [answer for answer in own if answer.case.visible]
        return _at(seen, np.linspace(1, 0, _DRAWN).tolist())
    names = dict.fromkeys(answer.case.structure for answer in own)
    return [
        chosen
        for name in list(names)[: 2 * _DRAWN]
        for chosen in _at([answer for answer in own if answer.case.structure == name], _QUANTILES)
    ]


def _at(answers: Sequence[PromptedMask], quantiles: Sequence[float]) -> list[PromptedMask]:
    ordered = sorted(answers, key=lambda answer: answer.dice["box"])
    places = dict.fromkeys(round(quantile * (len(ordered) - 1)) for quantile in quantiles) if ordered else {}
    return [ordered[place] for place in places]


def _draw(axes: Any, results: Results, answer: PromptedMask) -> None:
    case = answer.case
    image = results.images[case.subject, case.slice].image
    height, width = case.truth.shape
    axes.imshow(image, cmap="gray", vmin=float(image.min()), vmax=float(np.percentile(image, 99.8)))
    for mask, color in ((case.truth, _TRUTH), (answer.unpacked(), _FOUND)):
        if mask.any() and not mask.all():
            axes.contour(mask, [0.5], colors=[color], linewidths=1.3)
    x1, y1, x2, y2 = case.box - 0.5  # Pixel centers are whole numbers on these axes.
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=_BOX, linewidth=0.9)
    margin = 0.6 * max(x2 - x1, y2 - y1) + 0.04 * max(height, width)
    axes.set_xlim(max(x1 - margin, -0.5), min(x2 + margin, width - 0.5))
    axes.set_ylim(min(y2 + margin, height - 0.5), max(y1 - margin, -0.5))
    axes.set_axis_off()
