"""Plain lines without the folders of the files that they name, which often name the patient."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

# An absolute path up to its last part; a folder's name with a space ends the match early.
_ABSOLUTE = re.compile(r"(?<![\w.~/\\-])(?:~|[A-Za-z]:)?[/\\]{1,2}(?:[^\s/\\:;,'\"()]+[/\\])*(?=[^\s/\\])")
_BEGINS = r"(?<![\w./\\-])"


def without_folders(note: str, folders: Iterable[Path]) -> str:
    """The note with every path cut down to its last part.

    Args:
        note: One line.
        folders: Those that paths in it may begin with, as they were given; their names may hold spaces.
    """
    known = {place for at in folders for place in (str(at), str(at.absolute()), os.path.realpath(at))}
    for folder in sorted(known - {os.curdir, os.sep}, key=len, reverse=True):
        note = re.sub(f"{_BEGINS}{re.escape(folder)}[/\\\\]+", "", note)
        note = re.sub(rf"{_BEGINS}{re.escape(folder)}(?![\w.-])", "the folder", note)
    return _ABSOLUTE.sub("", note)
