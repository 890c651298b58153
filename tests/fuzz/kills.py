"""A process that dies at the n-th step on disk: before or after a rename, a link, a removal, a folder or file made."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 137
_PATHS = {
    "os.rename": 2,
    "os.remove": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "shutil.rmtree": 1,
}
# Python tells of a step before it is taken; these are counted behind it too.
_BEHIND = ("rename", "replace", "link", "unlink", "remove", "rmdir")


def in_child(action: Callable[[], int], folder: Path) -> tuple[int, str]:
    """Run it in a forked process, whose imports are done already; its exit code, and what it wrote to stderr."""
    log = folder.parent / f"{folder.name}.log"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of forks beside threads: the child uses none of them.
        process = os.fork()
    if process == 0:
        status = 99
        try:
            descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            warnings.simplefilter("ignore")
            os.environ["HOME"] = str(folder.parent / "home")
            status = action()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    _, ended = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(ended), log.read_text(errors="replace")


def killed_at(step: int, action: Callable[[], int], folder: Path) -> tuple[int, str]:
    """Run it in a process that dies at that step below `folder`; exit code 137 if it came so far."""

    def doomed() -> int:
        _count_steps(folder, step)
        return action()

    return in_child(doomed, folder)


def _count_steps(folder: Path, fatal: int) -> None:
    """From now on this process counts its steps below `folder`, and dies at one."""
    taken = 0
    prefix = os.fspath(folder)

    def step() -> None:
        nonlocal taken
        taken += 1
        if taken == fatal:
            os._exit(KILLED)

    def concerned(*paths: Any) -> bool:
        # Removing a tree names its files by descriptor and bare name.
        return any(isinstance(path, (str, bytes, os.PathLike)) and _below(path, prefix) for path in paths)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and concerned(path):
                step()
        elif event in _PATHS and concerned(*arguments[: _PATHS[event]]):
            step()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            if concerned(*arguments[:2]):
                step()
            return result

        return call

    for name in _BEHIND:
        setattr(os, name, counted(getattr(os, name)))
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
    import samri.staging

    if hasattr(samri.staging, "exchange"):  # A system call that Python tells nothing of.
        real: Callable[..., Any] = samri.staging.exchange

        def exchange(*arguments: Any) -> Any:
            step()
            result = real(*arguments)
            step()
            return result

        samri.staging.exchange = exchange
    sys.addaudithook(audit)


def _below(path: Any, prefix: str) -> bool:
    text = os.fsdecode(path)
    return text.startswith(prefix) or not text.startswith("/")
