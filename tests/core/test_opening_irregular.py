from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from samri.errors import CheckpointError, InputError, OutputError, SamriError
from samri.opening import open_regular


@pytest.mark.parametrize("error", [InputError, CheckpointError, OutputError])
def test_what_is_no_regular_file_is_named_whatever_the_error(error: type[SamriError], tmp_path: Path) -> None:
    with pytest.raises(error, match=r"is a folder: give a regular file$"):
        open_regular(tmp_path, error=error)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(error, match=r"large has 5 bytes, and no such file has more than 4"):
        open_regular(tmp_path / "large", error=error, limit=4)
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(error, match=r"pipe is a named pipe: give a regular file$"):
            open_regular(tmp_path / "pipe", error=error)
