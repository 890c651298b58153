"""One writer a shard: a lock that the system drops when its holder dies, however it dies."""

from __future__ import annotations

import errno
import sys
from io import FileIO
from pathlib import Path

from samri.errors import OutputError

# Some network file systems have no locks; there, nothing guards against starting the same share twice.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


def lock(file: FileIO, path: Path) -> None:
    """Hold `file` for this process alone, until it is closed.

    Raises:
        OutputError: Another process holds it.
    """
    if sys.platform == "win32":  # Windows itself refuses to rename a file that another process has open.
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{path} is being written by another samri-embed: wait for it, or give each process its own --shard"
        ) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
