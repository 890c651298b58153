"""The files of an evaluation: every case, every number, the tables and the pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from samri import __version__
from samri_tiny.evaluate._answers import BASELINES, WAYS, Results
from samri_tiny.evaluate._cases import FRAME, JITTER, JITTER_SHARE, MIN_AREA, RING, VISIBLE
from samri_tiny.evaluate._pictures import write_contact_sheet
from samri_tiny.evaluate._summary import Group, PairedTest, drawn_groups, real_groups, selected, tests
from samri_training.evaluate import SIGNIFICANT, markdown_table, p_text, plain_name

CASES, NUMBERS, TABLES = "cases.csv", "results.json", "tables.md"

_COLUMNS = ("set", "subject", "slice", "structure", "part", "parts", "pixels", "area_at_256", "cnr", "box_xyxy")
_HOW = (
    "Dice, mean over cases. A case is one connected part of a structure in one slice, of more than "
    f"{MIN_AREA:g} pixels where the slice's longest side has {FRAME}; all lengths below are in such pixels. *box*: the "
    f"true box, each side moved by U[-{JITTER:g}, {JITTER:g}] pixels, at most {JITTER_SHARE:.0%} of its extent. *tight "
    "box*: not moved. *ellipse* and *Otsu*: what the same box gives without a model, an ellipse that fills it, and "
    "Otsu's threshold of its pixels (the side on which its center lies); *margin*: the model's lead over the better of "
    "the two means. *refined*: the box, then one more point in the middle of the largest error, with the first answer "
    "as `mask_input`. *point*: one point in the middle of the structure, without a box; *best of three*: for that "
    "point, of the three candidates the one that the model scores best. *score error*: how far the model's estimate "
    "of the IoU is from what it gets with *box*, on average."
)
_SEEN = (
    f"A structure counts as visible if its contrast-to-noise ratio (CNR) is at least {VISIBLE:g}: |mean inside - mean "
    f"of the ring| / sqrt((var inside + var ring) / 2), with a ring {RING:g} pixels wide around it. That is no promise "
    "of an edge all around: half an outline without any contrast, and half with much, has a CNR of 1.4."
)
_PAIRED = (
    "Compared over the connected cases: Wilcoxon's signed-rank test, two-sided, paired by slice (the mean of its "
    "cases); the difference is second minus first, *r* the rank-biserial correlation, *p* corrected by Holm's method "
    "within the table. Slices of one subject are not independent: *p* is about these slices, not about a population."
)


def tables(results: Sequence[Results], lists: Mapping[str, str]) -> str:
    """All tables, as Markdown with headings of the third level.

    Args:
        results: By set.
        lists: Set to a line on whether its cases are the frozen ones.
    """
    parts = []
    for each in results:
        parts += [f"### {each.of.title}", f"{each.of.about} {_counted(each)} Cases {lists[each.of.name]}."]
        if each.of.kind == "drawn":
            parts.append(group_table(drawn_groups(each.answers)))
        else:
            parts += [group_table(real_groups(each.answers, "connected", each.of.trivial))]
            parts += ["With all parts of a structure in one box, as a person might draw it who wants them all:"]
            parts += [group_table(real_groups(each.answers, "whole", each.of.trivial))]
        shown = selected(each.answers, "connected", True if each.of.kind == "drawn" else None)
        parts += ["Compared" + (", visible structures:" if each.of.kind == "drawn" else ":")]
        parts += [comparison_table(tests(shown))]
    return "\n\n".join([*parts, "### How it was measured", _HOW, _SEEN, _PAIRED]) + "\n"


def write_files(
    folder: Path, results: Sequence[Results], text: str, provenance: Mapping[str, Any], *, pictures: bool
) -> list[str]:
    """Write `cases.csv`, `results.json`, `tables.md` and a contact sheet of each set; returns their names."""
    with (folder / CASES).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*_COLUMNS, "by", *(f"dice_{way.replace(' ', '_')}" for way in WAYS), "score"))
        table.writerows(row for each in results for row in _rows(each))
    numbers = {"samri": __version__, **provenance, "sets": [_numbers(each) for each in results]}
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / TABLES).write_text(text, encoding="utf-8")
    sheets = [f"{each.of.name}.png" for each in results] if pictures else []
    for each, name in zip(results, sheets, strict=False):
        write_contact_sheet(folder / name, each)
    return [CASES, NUMBERS, TABLES, *sheets]


def _counted(results: Results) -> str:
    cases = list(dict.fromkeys(answer.case for answer in results.answers))
    connected = [case for case in cases if case.connected]
    subjects = len({case.subject for case in cases})
    return (
        f"{results.slices} slices of {subjects} subject(s), {len(connected)} connected structures, "
        f"{sum(case.visible for case in connected)} of them visible."
    )


def _rows(results: Results) -> list[list[object]]:
    rows: list[list[object]] = []
    for answer in results.answers:
        case = answer.case
        rows.append(
            [
                results.of.name,
                case.subject,
                case.slice,
                case.structure,
                case.part,
                case.parts,
                case.pixels,
                f"{case.area:.1f}",
                f"{case.cnr:.4f}",
                " ".join(f"{value:.9g}" for value in case.box),
                answer.by,
                *(f"{answer.dice[way]:.6f}" if way in answer.dice else "" for way in WAYS),
                "" if answer.score is None else f"{answer.score:.6f}",
            ]
        )
    return rows


def _numbers(results: Results) -> dict[str, Any]:
    drawn = results.of.kind == "drawn"
    groups: dict[str, list[Group]] = {"connected": drawn_groups(results.answers)} if drawn else {}
    if not drawn:
        groups = {
            "connected": real_groups(results.answers, "connected", results.of.trivial),
            "whole": real_groups(results.answers, "whole", results.of.trivial),
        }
    compared = tests(selected(results.answers, "connected", True if drawn else None))
    return {
        "name": results.of.name,
        "title": results.of.title,
        "slices": results.slices,
        "groups": {unit: [asdict(each) for each in of] for unit, of in groups.items()},
        "tests": [asdict(test) for test in compared],
        "digests": results.digests,
    }


def group_table(groups: Sequence[Group]) -> str:
    """One row for each group and model: mean Dice of every way of asking, the baselines, margins over the better."""
    several = len({group.model for group in groups}) > 1
    heads = [
        "structures",
        *(["model"] if several else []),
        "cases",
        "box",
        *BASELINES,
        "margin",
        "tight box",
        "its margin",
        *WAYS[2:],
        "score error",
    ]
    rows = [
        [
            plain_name(group.name),
            *([plain_name(group.model)] if several else []),
            str(group.cases),
            f"**{group.dice['box']:.3f}**",
            *(f"{group.baselines[baseline]['box']:.3f}" for baseline in BASELINES),
            "" if group.trivial else f"{group.margin('box'):+.3f}",
            f"{group.dice['tight box']:.3f}",
            "" if group.trivial else f"{group.margin('tight box'):+.3f}",
            *(f"{group.dice[way]:.3f}" for way in WAYS[2:]),
            f"{group.score_error:.3f}",
        ]
        for group in groups
    ]
    return markdown_table(heads, rows, text_columns=1 + several)


def comparison_table(found: Sequence[PairedTest]) -> str:
    """One row for each pair that was compared."""
    rows = [
        [
            f"{plain_name(test.first)} → {plain_name(test.second)}",
            test.way,
            str(test.comparison.cases),
            f"{test.comparison.mean_difference:+.3f}",
            f"{test.comparison.effect_size:+.2f}",
            _p(test.p_holm),
        ]
        for test in found
    ]
    return markdown_table(["compared", "asked by", "slices", "difference", "effect r", "p"], rows, text_columns=2)


def _p(p: float) -> str:
    return f"**{p_text(p)}**" if p < SIGNIFICANT else p_text(p)
