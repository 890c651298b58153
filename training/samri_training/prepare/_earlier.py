"""What samri-prepare may replace: a dataset that it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samri.errors import OutputError
from samri.opening import read_json
from samri.ownership import refuse_foreign_content
from samri_training.prepare._report import FORMAT, REPORT_JSON, REPORT_TEXT
from samri_training.slices import SPLITS
from samri_training.slices._layout import SIDECAR


def check_dataset(folder: Path) -> None:
    """Refuse to replace a folder that samri-prepare didn't make, or that holds more than its files.

    Raises:
        OutputError: It says what it holds.
    """
    report = _values(folder / REPORT_JSON)
    if report.get("format") != FORMAT:
        raise OutputError(f"{folder} wasn't made by samri-prepare, so it won't be replaced: name another output")
    # Slices aren't listed one by one; what lies flat in the folder of a split under their naming is taken for one.
    slices = [
        f"{split}/{path.name}"
        for split in SPLITS
        for path in (folder / split).glob("*.nii.gz")
        if "_img_" in path.name or "_seg_" in path.name
    ]
    empty = [f"{split}/{SIDECAR}" for split in SPLITS]
    refuse_foreign_content(folder, [REPORT_JSON, REPORT_TEXT, *empty, *slices], "samri-prepare")


def _values(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, error=OutputError, remedy="prepare again")
    except OutputError:
        return {}
    return values if isinstance(values, dict) else {}
