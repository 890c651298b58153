"""Samples as a table: for people, for spreadsheets, for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samri.staging import staged_files
from samri_runtime.bench._environment import environment_lines
from samri_runtime.bench._measure import Sample

FILES = ("bench.csv", "bench.json", "bench.md", "bench.png")

_MB = 1e6


@dataclass(frozen=True)
class Row:
    """One case in figures: seconds, milliseconds for boxes, millions of bytes. None where nothing was measured.

    Attributes:
        values: Column to value, in the order of the columns.
    """

    values: dict[str, Any]

    @classmethod
    def of(cls, sample: Sample, batches: Sequence[int]) -> Row:
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
class Report:
    """What was measured, and where.

    Attributes:
        environment: From `environment`.
        scene: Name of what was asked.
        samples: From `measure`; the first one is the reference.
        batches: Boxes in one call.
        command: What made it.
    """

    environment: dict[str, Any]
    scene: str
    samples: Sequence[Sample]
    batches: Sequence[int]
    command: str

    @property
    def rows(self) -> list[Row]:
        """One for each sample."""
        return [Row.of(sample, self.batches) for sample in self.samples]

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
        """One line a case, under the names of `Row`."""
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
        """The same for a terminal."""
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
        from samri_runtime.bench._plot import plot

        with staged_files(folder) as staged:
            (staged / "bench.csv").write_text(self.to_csv(), encoding="utf-8", newline="\n")
            text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
            (staged / "bench.json").write_text(text, encoding="utf-8", newline="\n")
            (staged / "bench.md").write_text(self.to_markdown(), encoding="utf-8", newline="\n")
            if png:
                plot(self, staged / "bench.png")
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
