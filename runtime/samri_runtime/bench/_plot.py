"""The table as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samri.errors import MissingDependencyError

if TYPE_CHECKING:
    from samri_runtime.bench._report import Report


def import_matplotlib() -> tuple[Any, Any]:
    """Matplotlib's canvas for files, and its figure.

    Raises:
        MissingDependencyError: matplotlib isn't installed, or can't be imported.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "it needs matplotlib: run pip install 'samri[bench]', or leave the picture out with --no-png"
        ) from error
    return FigureCanvasAgg, Figure


def plot(report: Report, path: Path) -> None:
    """Bars of the medians with whiskers from the 10th to the 90th percentile: one image, then each batch of boxes.

    Raises:
        MissingDependencyError: matplotlib isn't installed.
    """
    figure_canvas, new_figure = import_matplotlib()
    measured = [row.values for row in report.rows if row.values["error"] is None]
    names = [f"{v['provider']} {v['precision']}" + (f", {v['threads']} threads" * bool(v["threads"])) for v in measured]
    panels = [("one image", "s", "encode{}_s")]
    panels += [(f"{batch} box{'es' * (batch > 1)}", "ms", f"boxes_{batch}{{}}_ms") for batch in report.batches]
    figure = new_figure(figsize=(4.5 * len(panels), 1.6 + 0.35 * len(measured)), layout="constrained")
    figure_canvas(figure)
    axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, unit, key) in zip(axes, panels, strict=True):
        medians, lows, highs = (
            np.array([values[key.format(percent)] or 0.0 for values in measured]) for percent in ("", "_p10", "_p90")
        )
        whiskers = [medians - lows, highs - medians]
        axis.barh(names, medians, xerr=whiskers, color="#4477aa", ecolor="#222222", capsize=2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()
        if axis is not axes[0]:
            axis.set_yticklabels([])
    figure.suptitle(
        f"{report.environment['model']['name']} on {report.environment['machine']['processor']}", fontsize=9
    )
    figure.savefig(path, dpi=120)
