"""What ONNX Runtime writes to stderr while it sets up a provider.

When a provider fails to load, ONNX Runtime logs the reason from C++, leaves the provider out and goes on. The log is
the only place where the reason appears, and Python has no hook for it: so file descriptor 2 is redirected while a
session is made.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from samri.stderr import captured_stderr, pass_on

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \[([VIWEF]):[^\]]*\] ", re.MULTILINE)
# "/path/file.cc:141 std::string onnxruntime::f(const T&)::<lambda(...)> [with T = int] text" -> "text"
_SOURCE = re.compile(
    r"(?:^|(?<=\s))(?:\S*[/\\])?[\w.]+\.(?:cc|cpp|cu|h):\d+ (?:[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?)"
    r"(?:::<lambda\([^)]*\)>(?:\(\))?(?: const)?)?(?: \[with [^\]]*\])? +"
)
_STATUS = re.compile(r"^(?:\[(?:ERROR|OpenVINO)\] ?|\[ONNXRuntimeError\] : \d+ : \w+ : )+")


@dataclass(frozen=True)
class Record:
    """One log record: its level, a letter of VIWEF, and its text on one line, without C++ file and function names."""

    level: str
    text: str


@contextlib.contextmanager
def captured_log() -> Iterator[list[Record]]:
    """Yield a list that holds ONNX Runtime's log records after the block; other text on stderr is passed on then.

    The redirection holds for the whole process, so it is kept short, and one thread at a time. Without a stderr (a
    windowed program) or room for a temporary file the list stays empty.
    """
    records: list[Record] = []
    texts: list[str] = []
    try:
        with captured_stderr() as texts:
            yield records
    finally:
        for text in texts:
            others, found = split_log(text)
            records.extend(found)
            pass_on(others)


def split_log(text: str) -> tuple[str, list[Record]]:
    """What came before ONNX Runtime's first log record, and the records."""
    text = _ANSI.sub("", text)
    heads = list(_RECORD.finditer(text))
    ends = [*(head.start() for head in heads), len(text)]
    records = [Record(head[1], one_line(text[head.end() : end])) for head, end in zip(heads, ends[1:], strict=True)]
    return text[: ends[0]], records


def one_line(message: str) -> str:
    """A message of ONNX Runtime on one line, without status codes and the C++ functions it passed through."""
    message = " ".join(_ANSI.sub("", message).split())
    while (shorter := _STATUS.sub("", _SOURCE.sub("", message, count=1)).strip()) != message:
        message = shorter
    return message
