"""Run many inputs in a forked worker that may hang, crash or run out of memory, and tell which ones broke a promise.

The promise: a correct result, or a `SamriError` of one line (a command: exit 1 or 2 with such a line); no other
exception, no warning, no library's chatter, no hang, no crash, no memory out of proportion, nothing half-written.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
from click.testing import CliRunner, Result

from samri.errors import SamriError

SECONDS = 60
"""Longest that one input may take."""
GRACE = 60
"""And how much longer until a worker that doesn't even answer its alarm is killed."""
MEMORY = 4_000_000_000
"""Bytes of address space that the inputs may take beside what the worker has at its start."""
LONGEST_MESSAGE = 1000

Case = Callable[[np.random.Generator, Path], object]


class BrokenPromiseError(AssertionError):
    """What came out is wrong; the text says how."""


class TookTooLong(BaseException):
    """The alarm; no program catches it by accident."""


@dataclass(frozen=True)
class Failure:
    """An input that broke a promise: enough to run it again, and to group it with others."""

    target: str
    seed: int
    index: int
    kind: str
    """First line: class of the exception, or what was broken."""
    details: str

    def __str__(self) -> str:
        again = f"pytest tests/fuzz --fuzz-target {self.target} --fuzz-seed {self.seed} --fuzz-only {self.index}"
        return f"{self.kind}\n  again: {again}\n{self.details}"


def generator(target: str, seed: int, index: int) -> np.random.Generator:
    """What decides an input, and nothing else does."""
    return np.random.default_rng([seed, zlib.crc32(target.encode()), index])


def run_trials(target: str, make: Callable[[Path], Case], folder: Path, seed: int, indices: list[int]) -> list[Failure]:
    """Run these inputs of a target.

    Args:
        target: Its name.
        make: Called in the worker, once: prepares valid inputs in a folder, and gives what runs one mutated input.
        folder: For whatever the worker writes.
        seed: Random seed of all inputs.
        indices: Which inputs.
    """
    failures: list[Failure] = []
    left = list(indices)
    while left:
        broken, stuck = _one_worker(target, make, folder, seed, left)
        failures += broken
        if stuck is None:
            break
        failures.append(
            Failure(target, seed, stuck[0], stuck[1], (folder / "noise").read_text(errors="replace")[-1500:])
        )
        left = left[left.index(stuck[0]) + 1 :]
        if stuck[1].startswith("worker failed to start"):
            break
    return failures


def invoke(main: click.Command, *arguments: object) -> Result:
    """Run a command as its users do; any way to end but 0, 1 or 2 with one plain error line breaks the promise."""
    result = CliRunner().invoke(main, [str(each) for each in arguments], prog_name=main.name)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 1, 2):
        raise BrokenPromiseError(f"exit {result.exit_code}: {result.stderr[-300:]}")
    if "Traceback (most recent call last)" in result.stderr:
        raise BrokenPromiseError(f"a traceback on stderr: {result.stderr[-1500:]}")
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith(f"{main.name}: error: ")]
    if len(errors) != (result.exit_code != 0):
        raise BrokenPromiseError(f"exit {result.exit_code} with {len(errors)} error lines: {result.stderr[-600:]!r}")
    strangers = [line for line in lines if not line.startswith(f"{main.name}:")]
    if strangers and result.exit_code:
        raise BrokenPromiseError(f"a line of nobody's on stderr: {strangers[0][:300]!r}")
    for line in lines:
        check_message(line, "line on stderr")
    return result


def check_message(text: str, what: str = "message") -> None:
    """One line that a terminal shows as it is, of a readable length."""
    if len(text) > LONGEST_MESSAGE:
        raise BrokenPromiseError(f"a {what} of {len(text)} characters: {text[:120]!r}...")
    strange = sorted({character for character in text if not character.isprintable()})
    if "\n" in strange or not text.strip():
        raise BrokenPromiseError(f"a {what} that isn't one line: {text[:300]!r}")
    # Bytes of a file name that are no text come back as lone surrogates.
    if any(not "\udc80" <= character <= "\udcff" for character in strange):
        raise BrokenPromiseError(f"control characters in a {what}: {strange[:5]}: {text[:200]!r}")


def _one_worker(
    target: str, make: Callable[[Path], Case], folder: Path, seed: int, indices: list[int]
) -> tuple[list[Failure], tuple[int, str] | None]:
    """Failures of a worker's inputs, and where it died or hung, if it did."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Other threads of pytest's: the worker needs none of them.
        process = os.fork()
    if process == 0:
        os.close(reader)
        _serve(target, make, folder, seed, indices, writer)
    os.close(writer)
    failures: list[Failure] = []
    current, text, reason = indices[0], b"", ""
    started = False
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            patience = SECONDS + GRACE if started else 300
            if not select.select([pipe], [], [], patience)[0]:
                os.kill(process, signal.SIGKILL)
                reason = f"hang: no answer within {patience} s"
                break
            piece = pipe.read(65536)
            if not piece:
                break
            text += piece
            *lines, text = text.split(b"\n")
            for line in lines:
                report = json.loads(line)
                started = True
                if "begin" in report:
                    current = report["begin"]
                elif "kind" in report:
                    failures.append(Failure(target, seed, report["at"], report["kind"], report["details"]))
                elif "done" in report:
                    current = -1
    _, status = os.waitpid(process, 0)
    if current == -1 and os.waitstatus_to_exitcode(status) == 0:
        return failures, None
    code = os.waitstatus_to_exitcode(status)
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
    if not started:
        reason = f"worker failed to start ({ended})"
    return failures, (current if current >= 0 else indices[-1], reason or f"crash: the process died with {ended}")


def _serve(target: str, make: Callable[[Path], Case], folder: Path, seed: int, indices: list[int], writer: int) -> None:
    """The worker: never returns."""
    status = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        os.environ |= {name: str(folder / part) for name, part in _PLACES.items()}
        case = make(folder / "seeds")
        _limit_memory()
        for index in indices:
            _tell(writer, {"begin": index})
            broken = _attempt(case, generator(target, seed, index), folder)
            if broken is not None:
                _tell(writer, {"at": index, "kind": broken[0], "details": broken[1]})
        _tell(writer, {"done": len(indices)})
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


_PLACES = {"HOME": "home", "SAMRI_CACHE_DIR": "cache", "SAMRI_CONFIG_DIR": "config", "XDG_CACHE_HOME": "xdg"}


def _settle(folder: Path) -> None:
    """A worker's own stderr, signals and limits, instead of pytest's."""
    noise = os.open(folder / "noise", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    import sys

    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    faulthandler.enable(2)
    signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def _limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TookTooLong


def _tell(writer: int, report: dict[str, Any]) -> None:
    os.write(writer, json.dumps(report).encode() + b"\n")


def _attempt(case: Case, rng: np.random.Generator, folder: Path) -> tuple[str, str] | None:
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    for part in _PLACES.values():
        shutil.rmtree(folder / part, ignore_errors=True)
    scratch.mkdir()
    os.chdir(scratch)
    os.ftruncate(2, 0)
    began = time.monotonic()
    try:
        with _quiet(), _alarm():
            try:
                case(rng, scratch)
            except SamriError as error:
                check_message(str(error))
    except TookTooLong:
        return f"hang: more than {SECONDS} s", "".join(traceback.format_exc()[-2500:])
    except BrokenPromiseError as error:
        return f"broken promise: {str(error)[:160]}", str(error)[:2500]
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:160]}", traceback.format_exc()[-2500:]
    chatter = (folder / "noise").read_text(errors="replace").strip()
    if chatter:
        return f"a library wrote to stderr: {chatter.splitlines()[0][:160]}", chatter[-1500:]
    took = time.monotonic() - began
    return (f"slow: {took:.0f} s", "") if took > SECONDS else None


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A warning that users would see is a failure, but only once the input was done with."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    for warning in seen:
        if not issubclass(warning.category, (DeprecationWarning, PendingDeprecationWarning, ResourceWarning)):
            raise BrokenPromiseError(f"a warning leaked: {warning.category.__name__}: {str(warning.message)[:300]}")
