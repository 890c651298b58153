"""The model card: its figures stand between two markers, and are this command's."""

from __future__ import annotations

from pathlib import Path

from samri.errors import InputError
from samri.staging import staged_file

START, END = "<!-- figures:start -->", "<!-- figures:end -->"


def check_card(path: Path) -> None:
    """Refuse a card without one pair of markers.

    Raises:
        InputError: It can't be read, or the markers aren't there.
    """
    _parts(path)


def write_figures(path: Path, figures: str) -> None:
    """Put `figures` between the markers of a card, in the place of what stood there.

    Raises:
        InputError: As `check_card`.
        OutputError: It can't be written.
    """
    before, after = _parts(path)
    with staged_file(path) as staged:
        staged.write_text(f"{before}{START}\n\n{figures.strip()}\n\n{END}{after}", encoding="utf-8")


def _parts(path: Path) -> tuple[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in after or END in after:
        raise InputError(f"{path} needs the lines {START} and {END}, once each: the figures go between them")
    return before, after
