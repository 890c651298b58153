"""Box plots of every metric, by size of structure and model."""

from __future__ import annotations

from pathlib import Path

from samri_training.evaluate._evaluation import Evaluation
from samri_training.evaluate._metrics import METRICS, TITLES, Metric
from samri_training.evaluate._report import PROMPT_TITLES, SIZE_TITLES
from samri_training.evaluate._summary import GROUPS, Rows, values
from samri_training.prompting import PromptKind

# Okabe and Ito's colours, which colour-blind readers can tell apart.
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
