"""What an evaluation may replace: a report that an earlier one wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samri.errors import OutputError
from samri.opening import read_json
from samri.ownership import refuse_foreign_content
from samri_training.evaluate._files import CASES, NUMBERS, REPORT
from samri_training.evaluate._metrics import METRICS
from samri_training.prompting import PROMPT_KINDS


def check_report(folder: Path) -> None:
    """Refuse to replace a folder that samri-evaluate didn't make, or that holds more than its files.

    Raises:
        OutputError: It says what it holds.
    """
    if not _is_report(folder / NUMBERS):
        raise OutputError(f"{folder} wasn't made by samri-evaluate, so it won't be replaced: name another output")
    plots = [f"{metric}_{prompt}.png" for metric in METRICS for prompt in PROMPT_KINDS]
    refuse_foreign_content(folder, [CASES, NUMBERS, REPORT, *plots], "samri-evaluate")


def _is_report(numbers: Path) -> bool:
    try:
        values: Any = read_json(numbers, error=OutputError, remedy="evaluate again")
    except OutputError:
        return False
    return isinstance(values, dict) and {"samri", "protocol", "conventions", "counts"} <= values.keys()
