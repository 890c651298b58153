"""Seeded damage: each function takes a numpy Generator and something valid, and gives back something that may not be.

The same generator state gives the same damage, so that a failure is told by its seed alone.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import nibabel as nib
import numpy as np

_T = TypeVar("_T")

INTEGERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
INTEGERS += (2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**12, -(2**31), -(2**63), 10**40)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 5e-324, 1e300, 3.5e38, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "0", "-1", "1e999", "nan", "null", "true", "../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "..")
TEXTS += (
    "a" * 5000,
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "tab\there",
    "nul\0byte",
    "\u202egnp.exe",
    "\ud800",
    "é́",
    "%s%n",
)
TEXTS += (
    "C:\\x",
    "con",
    "__proto__",
    "fp32",
    "cpu",
    "encoder.onnx",
    "decoder.onnx",
    "samri",
    "sam",
    "1",
    "2.0",
    "x/y/../z",
)


def pick(rng: np.random.Generator, values: Sequence[_T]) -> _T:
    """One of several, whatever their types."""
    return values[int(rng.integers(len(values)))]


def value(rng: np.random.Generator, depth: int = 0) -> Any:
    """A JSON value of any kind."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: bool(rng.integers(2)),
        lambda: pick(rng, INTEGERS),
        lambda: pick(rng, FLOATS),
        lambda: pick(rng, TEXTS),
        lambda: int(rng.integers(-5, 300)),
        lambda: float(rng.normal(0, 100)),
    ]
    if depth < 3:
        kinds += [
            lambda: [value(rng, depth + 1) for _ in range(rng.integers(4))],
            lambda: {pick(rng, TEXTS): value(rng, depth + 1) for _ in range(rng.integers(3))},
        ]
    return pick(rng, kinds)()


def data(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes with one to four places damaged, cut off, doubled, or with some in between."""
    changed = bytearray(content)
    for _ in range(pick(rng, (1, 1, 1, 2, 4))):
        pick(rng, _BYTE_DAMAGE)(rng, changed)
    return bytes(changed)


def flipped(rng: np.random.Generator, content: bytes) -> bytes:
    """One bit the other way: what bad memory and bad disks do."""
    changed = bytearray(content)
    _flip(rng, changed)
    return bytes(changed)


def cut(rng: np.random.Generator, content: bytes) -> bytes:
    """The first part of it, often nearly all or nearly nothing."""
    return content[: _place(rng, len(content))]


def document(rng: np.random.Generator, content: bytes) -> bytes:
    """A JSON text with one to three values, keys or types changed; sometimes its bytes."""
    if rng.random() < 0.15:
        return data(rng, content)
    if rng.random() < 0.03:
        return b"[" * 100_000
    values = tree(rng, json.loads(content))
    text = json.dumps(values, indent=1)
    if rng.random() < 0.05:  # A key that comes twice.
        text = text.replace("{", '{"format": 1, "version": 2,', 1)
    return text.encode("utf-8", "surrogatepass")


def tree(rng: np.random.Generator, values: Any) -> Any:
    """A copy of nested dictionaries and lists with one to three places changed."""
    root = {"root": json.loads(json.dumps(values))}
    for _ in range(pick(rng, (1, 1, 1, 2, 3))):
        places = list(_places(root))
        holder, key = pick(rng, places)
        _damage_place(rng, holder, key)
        if "root" not in root:
            root["root"] = value(rng)
    return root["root"]


def nifti(rng: np.random.Generator, plain: bytes) -> bytes:
    """An uncompressed NIfTI-1 file with one to three header fields changed, or its bytes damaged."""
    if rng.random() < 0.2:
        return data(rng, plain)
    changed = bytearray(plain)
    dtype = nib.nifti1.header_dtype
    for _ in range(pick(rng, (1, 1, 2, 3))):
        name = pick(rng, dtype.names or ())
        kind, offset = (dtype.fields or {})[name][:2]
        base = kind.base
        count = int(np.prod(kind.shape, dtype=int)) if kind.shape else 1
        at = offset + int(rng.integers(count)) * base.itemsize
        changed[at : at + base.itemsize] = _number(rng, base)
    return bytes(changed)


def gzipped(rng: np.random.Generator, plain: bytes) -> bytes:
    """A gzip file of those bytes with one thing wrong with the gzip."""
    whole = gzip.compress(plain, 1, mtime=0)
    kinds: list[Callable[[], bytes]] = [
        lambda: flipped(rng, whole),
        lambda: cut(rng, whole),
        lambda: whole + rng.bytes(int(rng.integers(1, 200))),
        lambda: whole + bytes(int(rng.integers(1, 200))),
        lambda: whole + whole,
        lambda: whole[:-8] + rng.bytes(4) + whole[-4:],
        lambda: whole[:-4] + struct.pack("<I", pick(rng, (0, 1, 2**32 - 1))),
        lambda: gzip.compress(whole, 1, mtime=0),
        lambda: gzip.compress(plain + bytes(50_000_000), 1, mtime=0),
        lambda: gzip.compress(plain[:100], 1, mtime=0) + gzip.compress(plain[100:], 1, mtime=0),
        lambda: data(rng, whole),
    ]
    return pick(rng, kinds)()


def archive(rng: np.random.Generator, content: bytes) -> tuple[bytes, bool]:
    """A zip (such as a .pth) with damage; and whether it must still be the same or be refused.

    Raw damage leaves the archive's checksums as they were; a member that is changed and packed anew has a right one,
    so that what is read is another, formally whole, file.
    """
    if rng.random() < 0.5:
        return (flipped if rng.random() < 0.6 else data)(rng, content), True
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = [(info.filename, source.read(info)) for info in source.infolist()]
    at = int(rng.integers(len(members)))
    if rng.random() < 0.6:  # The pickle is what decides.
        at = next((place for place, (name, _) in enumerate(members) if name.endswith("data.pkl")), at)
    name, inside = members[at]
    kinds: list[Callable[[], object]] = [
        lambda: members.__setitem__(at, (name, data(rng, inside))),
        lambda: members.__setitem__(at, (name, flipped(rng, inside))),
        lambda: members.__setitem__(at, (name, _other_pickle(rng, inside))),
        lambda: members.__setitem__(at, (name, cut(rng, inside))),
        lambda: members.pop(at),
        lambda: members.__setitem__(at, (pick(rng, ("../x", "/x", "x" * 300, name + "2", name.upper())), inside)),
        lambda: members.insert(0, (name + ".other", inside)),
    ]
    pick(rng, kinds)()
    written = io.BytesIO()
    with zipfile.ZipFile(
        written, "w", pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for member, held in members:
            new.writestr(member, held)
    return written.getvalue(), False


def safetensors(rng: np.random.Generator, content: bytes) -> bytes:
    """A safetensors file with its header's values or its length changed, or its bytes damaged."""
    if rng.random() < 0.3:
        return data(rng, content)
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.15:
        return (
            struct.pack("<Q", pick(rng, (0, 1, length - 1, length + 1, 2**20, 2**40, 2**63, 2**64 - 1))) + header + rest
        )
    text = json.dumps(tree(rng, json.loads(header))).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + rest


def _other_pickle(rng: np.random.Generator, inside: bytes) -> bytes:
    """An opcode or a name in it replaced by another that is as long."""
    swaps = (
        (b"float32", b"float16"),
        (b"FloatStorage", b"LongStoragex"),
        (b"K", b"I"),
        (b"\x85", b"\x86"),
        (b"q", b"h"),
    )
    swaps += (
        (b"torch._utils", b"builtins.evl"),
        (b"_rebuild_tensor_v2", b"_rebuild_parameter"),
        (b"}", b"]"),
        (b"u", b"e"),
    )
    old, new = pick(rng, swaps)
    places = [at for at in range(len(inside)) if inside.startswith(old, at)]
    if not places:
        return flipped(rng, inside)
    at = pick(rng, places)
    return inside[:at] + new[: len(old)] + inside[at + len(old) :]


def _place(rng: np.random.Generator, length: int) -> int:
    """A place in a file: anywhere, in its first bytes, or in its last."""
    if length == 0:
        return 0
    near = min(length, 400)
    return int(pick(rng, (rng.integers(length), rng.integers(near), length - 1 - rng.integers(near))))


def _flip(rng: np.random.Generator, changed: bytearray) -> None:
    if changed:
        changed[_place(rng, len(changed))] ^= 1 << int(rng.integers(8))


def _overwrite(rng: np.random.Generator, changed: bytearray) -> None:
    at, size = _place(rng, len(changed)), pick(rng, (1, 2, 4, 8))
    number = pick(rng, INTEGERS) % (1 << 8 * size)
    changed[at : at + size] = number.to_bytes(size, pick(rng, ("little", "big")))


def _zero(rng: np.random.Generator, changed: bytearray) -> None:
    at, size = _place(rng, len(changed)), int(rng.integers(1, 600))
    changed[at : at + size] = bytes(len(changed[at : at + size]))


def _remove(rng: np.random.Generator, changed: bytearray) -> None:
    at = _place(rng, len(changed))
    del changed[at : at + int(rng.integers(1, 100))]


def _insert(rng: np.random.Generator, changed: bytearray) -> None:
    at = _place(rng, len(changed))
    changed[at:at] = rng.bytes(int(rng.integers(1, 100)))


def _repeat(rng: np.random.Generator, changed: bytearray) -> None:
    at = _place(rng, len(changed))
    changed[at:at] = changed[at : at + int(rng.integers(1, 2000))]


def _cut(rng: np.random.Generator, changed: bytearray) -> None:
    del changed[_place(rng, len(changed)) :]


_BYTE_DAMAGE = (_flip, _flip, _overwrite, _overwrite, _zero, _remove, _insert, _repeat, _cut)


def _number(rng: np.random.Generator, kind: np.dtype[Any]) -> bytes:
    if kind.kind == "S":
        return pick(rng, (b"\xff", b"A", b"\0", b"n+1\0")).ljust(kind.itemsize, b"x")[: kind.itemsize]
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(pick(rng, (*FLOATS, float(rng.normal(0, 10)))), kind).tobytes()
    number = pick(rng, (*INTEGERS, int(rng.integers(-4, 3000))))
    return (number % (1 << 8 * kind.itemsize)).to_bytes(kind.itemsize, "little")


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree: a dictionary or list, and the key or index in it."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def _damage_place(rng: np.random.Generator, holder: Any, key: Any) -> None:
    old = holder[key]
    near: list[Any] = [value(rng)]
    if isinstance(old, bool):
        near += [not old]
    elif isinstance(old, int | float):
        near += [old + 1, old - 1, -old, old * 2, float(old), str(old), pick(rng, INTEGERS), pick(rng, FLOATS)]
    elif isinstance(old, str):
        at = int(rng.integers(len(old))) if old else 0
        digit = pick(rng, "0123456789abcdef")
        near += [old[:at] + digit + old[at + 1 :], old[:at], old + digit, old.upper(), "../" + old, "./" + old]
        near += [old + "\n", [old], pick(rng, TEXTS)]
    elif isinstance(old, list):
        near += [old[:-1], old + old[-1:], [], old[::-1], dict(enumerate(old)), [old], (old * 3000)[:20_000]]
    elif isinstance(old, dict):
        near += [
            list(old.items()),
            {},
            {**old, "extra": value(rng)},
            [old],
            {key + "x": item for key, item in old.items()},
        ]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = pick(rng, near)
