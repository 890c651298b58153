"""Names and colors of a label map's objects, where other programs look for them.

Two places: a table beside the mask, as BIDS has it, and an extension in the mask's own header.

- https://bids-specification.readthedocs.io/en/stable/derivatives/imaging.html#common-image-derived-labels
- https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/extension.html

The extension is the Connectome Workbench's label table: the only one for names of labels that has a registered code,
and read by `wb_view` and `wb_command`. A comment (code 6) is text that no viewer takes for names. ITK-SNAP, 3D Slicer
and MITK read names from files of their own alone. TotalSegmentator writes the same XML under code 0, "unknown".
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from samri.io._overlay import Color, color_of
from samri.staging import staged_file

CARET = 30
"""The code of the Workbench's extension (`NIFTI_ECODE_CARET`)."""


def write_label_table(path: Path, names: Mapping[int, str], colors: Mapping[int, str] | None = None) -> None:
    """Write a `dseg.tsv`: a line with index, name and color for each object, under a line of headings.

    Args:
        path: The table; it appears whole or not at all.
        names: Label to name.
        colors: Label to `#rrggbb`; those of the overlay for all others.

    Raises:
        OutputError: It can't be written.
    """
    with staged_file(path) as staged, staged.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("index", "name", "color"))
        for label, name in sorted(names.items()):
            table.writerow((label, name, "#{:02x}{:02x}{:02x}".format(*_color(label, colors))))


def label_extension(names: Mapping[int, str], colors: Mapping[int, str] | None = None) -> bytes:
    """The content of the header extension: XML in UTF-8, without a date, so that equal masks are equal files.

    Args:
        names: Label to name; printable, since XML has no other characters.
        colors: As in `write_label_table`.
    """
    labels = "".join(
        f'<Label Key="{label}" {_shares(_color(label, colors))} Alpha="1">{escape(name)}</Label>\n'
        for label, name in sorted(names.items())
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension>\n<VolumeInformation Index="0">\n'
        f"<LabelTable>\n{labels}</LabelTable>\n<VolumeType>Label</VolumeType>\n</VolumeInformation>\n</CaretExtension>"
    ).encode()


def _color(label: int, colors: Mapping[int, str] | None) -> Color:
    given = (colors or {}).get(label)
    return color_of(label) if given is None else (int(given[1:3], 16), int(given[3:5], 16), int(given[5:7], 16))


def _shares(color: Color) -> str:
    parts = zip(("Red", "Green", "Blue"), color, strict=True)
    return " ".join(f'{part}="{value / 255:.4f}"' for part, value in parts)
