"""The names that a pickle refers to, read from its opcodes without running any of them."""

from __future__ import annotations

import io
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ARCHIVE_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    OSError,
    struct.error,
)
"""What `zipfile` was seen to raise on damaged archives."""

_LONGEST = 4 << 20
"""Bytes looked at. The tensors' data lies apart: the pickle of a ViT-H's state dict has some hundred kilobytes."""


def pickle_globals(path: Path) -> tuple[int, list[str]]:
    """The highest pickle protocol in a checkpoint file, and the names that it refers to, such as `posix.system`.

    As far as the file can be followed: of a damaged one, what comes before the damage.
    """
    protocol, names, memo, strings = 0, dict[str, None](), list[str](), list[str]()
    stream = io.BytesIO(_pickle_bytes(path))
    try:
        # Before torch 1.6 a checkpoint was several pickles one after the other.
        while stream.tell() < len(stream.getbuffer()):
            for opcode, argument, _ in _opcodes(stream):
                if isinstance(argument, int):
                    if opcode.name == "PROTO":
                        protocol, memo = max(protocol, argument), []
                    elif opcode.name in ("BINGET", "LONG_BINGET") and argument < len(memo):
                        strings.append(memo[argument])
                elif isinstance(argument, str):
                    if opcode.name == "GLOBAL":
                        names[plain_name(argument.replace(" ", "."))] = None
                    elif "UNICODE" in opcode.name:
                        strings.append(argument)
                elif opcode.name == "STACK_GLOBAL":
                    names[plain_name(".".join(strings[-2:]))] = None
                elif opcode.name == "MEMOIZE":
                    # Other objects than strings take a place too; nothing asks for those by name.
                    memo.append(strings[-1] if strings else "")
    except (ValueError, LookupError):
        pass
    return protocol, list(names)


def _opcodes(stream: io.BytesIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    opcodes = pickletools.genops(stream)
    while True:
        with warnings.catch_warnings():
            # A damaged string may have an escape that Python doesn't know.
            warnings.filterwarnings("ignore", message="invalid escape sequence", category=DeprecationWarning)
            opcode = next(opcodes, None)
        if opcode is None:
            return
        yield opcode


def plain_name(name: str, unfit: str = r"[^\w./-]") -> str:
    """A name fit for a message: its characters come from an untrusted file."""
    return re.sub(unfit, "?", name)[:100]


def _pickle_bytes(path: Path) -> bytes:
    """The pickle of a checkpoint: the file itself, or `data.pkl` in the zip that torch writes since 1.6."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if member is None:
                return b""
            with archive.open(member) as file:
                return file.read(_LONGEST)
    except ARCHIVE_DAMAGE:
        with path.open("rb") as file:
            return file.read(_LONGEST)
