"""Measurements as text, CSV, JSON, Markdown and a picture, with the machine that they were made on."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samri.bundle import Bundle
from samri.errors import MissingDependencyError, printable
from samri.process import usable_cores
from samri.staging import staged_files
from samri_runtime.bench._measure import Measurements
from samri_runtime.machine import machine
from samri_runtime.providers import load_onnxruntime
from samri_runtime.providers._wheels import installed_wheels

FILES = ("bench.csv", "bench.json", "bench.md", "bench.png")

_MB = 1e6


@dataclass(frozen=True)
class BenchRow:
    """The figures of one case: seconds, milliseconds for boxes, megabytes. None where nothing was measured.

    Attributes:
        values: Values by column, in the order of the columns.
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, sample: Measurements, batches: Sequence[int]) -> BenchRow:
        """The figures of a sample: medians, and the 10th and 90th percentile of what is measured often."""
        agreement = sample.agreement
        values: dict[str, Any] = {
            "provider": sample.case.label,
            "precision": sample.case.precision,
            "threads": sample.case.threads,
            "ran": "+".join(dict.fromkeys(sample.ran.values())) or None,
            "cold_s": _percentile(sample.cold, 50),
            "first_encode_s": _percentile(sample.first_encodes, 50),
            "encode_p10_s": _percentile(sample.encodes, 10),
            "encode_s": _percentile(sample.encodes, 50),
            "encode_p90_s": _percentile(sample.encodes, 90),
        }
        for batch in batches:
            seconds = sample.decodes.get(batch, [])
            for name, percent in (("_p10", 10), ("", 50), ("_p90", 90)):
                value = _percentile(seconds, percent)
                values[f"boxes_{batch}{name}_ms"] = None if value is None else value * 1e3
        values |= {
            "peak_mb": max(sample.peak) / _MB if sample.peak else None,
            "steady_mb": max(sample.steady) / _MB if sample.steady else None,
            "mean_dice": agreement.mean_dice if agreement else None,
            "worst_dice": agreement.worst_dice if agreement else None,
            "logits_off": agreement.logits if agreement else None,
            "notes": "; ".join(sample.notes) or None,
            "error": sample.error,
        }
        return cls(values)


@dataclass(frozen=True)
class BenchReport:
    """Measurements and the machine that they were made on.

    Attributes:
        environment: From `environment`.
        scene: Name of the scene.
        samples: From `measure`; the first one is the reference.
        batches: Numbers of boxes per call.
        command: The command line.
    """

    environment: dict[str, Any]
    scene: str
    samples: Sequence[Measurements]
    batches: Sequence[int]
    command: str

    @property
    def rows(self) -> list[BenchRow]:
        """One for each sample."""
        return [BenchRow.of(sample, self.batches) for sample in self.samples]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: environment, command, and a row with all its raw times for each case."""
        rows = [
            {
                **row.values,
                "case": sample.case.to_json(),
                "raw": {
                    "cold_s": sample.cold,
                    "first_encode_s": sample.first_encodes,
                    "encode_s": sample.encodes,
                    "boxes_s": {str(batch): seconds for batch, seconds in sample.decodes.items()},
                },
            }
            for row, sample in zip(self.rows, self.samples, strict=True)
        ]
        return {"environment": self.environment, "scene": self.scene, "command": self.command, "rows": rows}

    def to_csv(self) -> str:
        """One line per case, with the columns of `BenchRow`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0].values), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.values for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The environment, the command and a table, to paste into a document."""
        header, *body = self._cells()
        lines = [*environment_lines(self.environment), "", f"`{self.command}`", ""]
        table = [header, ["---"] * len(header), *body]
        lines += [f"| {' | '.join(cells)} |" for cells in table]
        return "\n".join([*lines, "", *self._remarks()]).rstrip() + "\n"

    def to_text(self) -> str:
        """The environment and a table for a terminal."""
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([*environment_lines(self.environment), "", *lines, *self._remarks()])

    def write(self, folder: Path, *, png: bool = True) -> list[Path]:
        """Write bench.csv, bench.json, bench.md and bench.png into a folder: all of them, or none.

        Raises:
            OutputError: They can't be written.
            MissingDependencyError: matplotlib, which draws the picture, isn't installed.
        """
        with staged_files(folder) as staged:
            (staged / "bench.csv").write_text(self.to_csv(), encoding="utf-8", newline="\n")
            text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
            (staged / "bench.json").write_text(text, encoding="utf-8", newline="\n")
            (staged / "bench.md").write_text(self.to_markdown(), encoding="utf-8", newline="\n")
            if png:
                _plot(self, staged / "bench.png")
            names = sorted(path.name for path in staged.iterdir())
        return [folder / name for name in names]

    def _cells(self) -> list[list[str]]:
        boxes = [f"{batch} box{'es' * (batch > 1)} (ms)" for batch in self.batches]
        header = [
            "provider",
            "precision",
            "threads",
            "ran on",
            "cold start (s)",
            "first image (s)",
            "image (s)",
            *boxes,
        ]
        header += ["peak (MB)", "steady (MB)", "Dice (worst)", "logits off"]
        return [header, *(self._row_cells(row.values) for row in self.rows)]

    def _row_cells(self, values: dict[str, Any]) -> list[str]:
        if values["error"] is not None:
            name = [values["provider"], values["precision"], str(values["threads"] or "all")]
            return [*name, "failed", *["-"] * (7 + len(self.batches))]
        image = [values["encode_s"], values["encode_p10_s"], values["encode_p90_s"]]
        cells = [
            values["provider"],
            values["precision"],
            str(values["threads"] or "all"),
            values["ran"],
            _number(values["cold_s"]),
            _number(values["first_encode_s"]),
            _spread(*image),
        ]
        for batch in self.batches:
            cells.append(_spread(*(values[f"boxes_{batch}{name}_ms"] for name in ("", "_p10", "_p90"))))
        cells += [_number(values["peak_mb"]), _number(values["steady_mb"])]
        return [*cells, f"{values['mean_dice']:.4f} ({values['worst_dice']:.4f})", f"{values['logits_off']:.1e}"]

    def _remarks(self) -> list[str]:
        lines = [f"{sample.case}: {line}" for sample in self.samples for line in (sample.error, *sample.notes) if line]
        return ["", *dict.fromkeys(lines)] if lines else []


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(middle: float | None, low: float | None, high: float | None) -> str:
    return "-" if middle is None else f"{_number(middle)} ({_number(low)}-{_number(high)})"


def import_matplotlib() -> tuple[Any, Any]:
    """Matplotlib's classes for a canvas without a window and for a figure.

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


def _plot(report: BenchReport, path: Path) -> None:
    """Draw medians as bars with whiskers from the 10th to the 90th percentile: one image, then each batch of boxes.

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


def environment(bundle: Bundle) -> dict[str, Any]:
    """Machine, wheels and model in plain JSON values, without names of users or folders."""
    manifest = bundle.manifest
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": {**machine(), "usable_cores": usable_cores()},
        "onnxruntime": load_onnxruntime().__version__,
        "wheels": [str(wheel) for wheel in installed_wheels()],
        "model": {
            "name": manifest.name,
            "backbone": manifest.backbone,
            "image_size": manifest.image_size,
            "sha256": bundle.sha256,
        },
    }


def environment_lines(environment: dict[str, Any]) -> list[str]:
    """`environment` as text."""
    here, model = environment["machine"], environment["model"]
    name, backbone = printable(model["name"], 200), printable(model["backbone"], 200)
    gpus = f"; GPUs {', '.join(here['nvidia']['gpus'])}" if here["nvidia"]["gpus"] else ""
    return [
        f"{name}: {backbone} at {model['image_size']}, manifest {model['sha256'][:16]}",
        f"{here['processor']}, {here['usable_cores']} of {here['cores']} cores{gpus}; {here['system']}",
        f"samri {here['samri']}, Python {here['python']}, numpy {here['numpy']}, {', '.join(environment['wheels'])}; "
        f"{environment['date']}",
    ]
