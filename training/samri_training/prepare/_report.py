"""report.json and report.txt: what a dataset holds, and what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samri import __version__
from samri.privacy import without_folders
from samri_training.prepare._cut import CutCase, LabelTally
from samri_training.prepare._sources import LeftOut
from samri_training.slices import SPLITS, Split

REPORT_JSON, REPORT_TEXT = "report.json", "report.txt"
REPORT_FORMAT = "samri-prepare-report"

_SHOWN = 20


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` made.

    Attributes:
        source: The folder that it was made from. The report has its name alone, and files below it by their path in
            it: the folders above often name a patient.
        settings: Layout and options, in plain JSON values.
        cases: Cases of each split, in the order of their names.
        left_out: Files that nothing came of, and why.
        notes: Notes for the user, one line each.
        names: Label to the name of its structure, as far as the source says.
    """

    source: Path
    settings: dict[str, Any]
    cases: dict[Split, list[CutCase]]
    left_out: list[LeftOut]
    notes: list[str]
    names: dict[int, str] = field(default_factory=dict)

    @property
    def slices(self) -> int:
        """How many there are in all."""
        return sum(len(case.slices) for cases in self.cases.values() for case in cases)

    def labels(self, split: Split | None = None) -> dict[int, LabelTally]:
        """Label to what there is of it, in one split or in all."""
        tallies: dict[int, LabelTally] = {}
        for case in self._cases_of(split):
            for label, tally in case.labels.items():
                tallies[label] = tallies.get(label, LabelTally()) + tally
        return dict(sorted(tallies.items()))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "format": REPORT_FORMAT,
            "format_version": 1,
            "samri": __version__,
            "source": self._name,
            "settings": self.settings,
            "label_names": {str(label): name for label, name in self.names.items()},
            "splits": {split: self._describe(split) for split in SPLITS},
            "total": self._describe(None),
            "left_out": [{key: self._plain(line) for key, line in asdict(item).items()} for item in self.left_out],
            "notes": [self._plain(note) for note in self.notes],
        }

    def to_text(self) -> str:
        """A page to read."""
        total = self._describe(None)
        lines = [
            f"{self._name}: layout {self.settings['layout']}, slices along {self.settings['cut']}",
            "",
            *_table(
                ("", "patients", "cases", "slices"),
                [
                    (name, *(str(self._describe(split)[key]) for key in ("patients", "cases", "slices")))
                    for name, split in [*((split, split) for split in SPLITS), ("total", None)]
                ],
            ),
            "",
            "sizes of slices (rows x columns): "
            + _some([f"{shape} ({count})" for shape, count in total["shapes"].items()], 8),
            "",
            *_table(
                ("label", "slices", "pixels", "small", "medium", "large", "dropped"),
                [(self._named(label), *map(str, asdict(tally).values())) for label, tally in self.labels().items()],
            ),
            "small < 0.5 %, medium 0.5 to 3.5 %, large > 3.5 % of the image, each counted once per slice",
            f"dropped: fewer than {self.settings['min_pixels']} pixels in the slice",
            "",
            f"slices left out: {total['slices_unmarked']} with no label, "
            f"{total['slices_thinned']} with dropped labels only",
            *(f"left out: {self._plain(item.what)}: {self._plain(item.why)}" for item in self.left_out[:_SHOWN]),
        ]
        if len(self.left_out) > _SHOWN:
            lines.append(f"left out: {len(self.left_out) - _SHOWN} more, all of them in {REPORT_JSON}")
        return "\n".join([*lines, *(f"note: {self._plain(note)}" for note in self.notes)]) + "\n"

    @property
    def _name(self) -> str:
        return self.source.resolve().name

    def _plain(self, line: str) -> str:
        return without_folders(line, [self.source])

    def _named(self, label: int) -> str:
        return f"{label} {self.names[label]}" if label in self.names else str(label)

    def _cases_of(self, split: Split | None) -> Sequence[CutCase]:
        return [case for name in SPLITS if split in (None, name) for case in self.cases.get(name, [])]

    def _describe(self, split: Split | None) -> dict[str, Any]:
        cases = self._cases_of(split)
        shapes: Counter[tuple[int, int]] = sum((case.shapes for case in cases), Counter())
        return {
            "patients": len({case.pair.patient for case in cases}),
            "cases": len({case.case for case in cases}),
            "slices": sum(len(case.slices) for case in cases),
            "slices_unmarked": sum(case.unmarked for case in cases),
            "slices_thinned": sum(case.thinned for case in cases),
            "shapes": {f"{height} x {width}": count for (height, width), count in shapes.most_common()},
            "labels": {str(label): asdict(tally) for label, tally in self.labels(split).items()},
        }


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in row).rstrip()
        for row in (enumerate(zip(cells, widths, strict=True)) for cells in [head, *rows])
    ]


def _some(items: list[str], most: int) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
