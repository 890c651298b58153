"""A checkpoint file's content as it was saved, read without running any of its code; or an error in one line."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from samri.errors import CheckpointError, MissingDependencyError
from samri.hashing import stream_sha256
from samri.model._file_kinds import other_kind
from samri.model._pickle_globals import ARCHIVE_DAMAGE, pickle_globals, plain_name
from samri.model._shards import index_of, join
from samri.opening import open_regular

WHERE_TO_GET = (
    "SAM's are at https://github.com/facebookresearch/segment-anything#model-checkpoints (Apache-2.0), "
    "MedSAM's and SAMRI's where docs/export.md says"
)

_HEAD = 1 << 10

_DAMAGED = "not a PyTorch checkpoint, or truncated (copy or download it again)"

_PLAIN_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_\w+|(storage\.)?\w*Storage|Size|\w+\d+)|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
)
"""Names in a pickled state dict: containers, tensors, storages and dtypes, and numpy's numbers beside them."""

_NUMPY_GLOBALS = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)

_MOST_UNPACKED = 4
"""How many times a zip archive's size its members may have: torch stores them as they are."""

# What torch's restricted unpickler and its zip reader were seen to raise on damaged files. A damaged pickle can ask for
# any item, attribute or operand that is not there, hence the last six.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    struct.error,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
)


@dataclasses.dataclass(frozen=True)
class Content:
    """Content of a checkpoint file."""

    values: Any
    """As it was saved; of a safetensors file, a dictionary of tensors."""
    bytes: int
    sha256: str
    """SHA-256 of the bytes that were read; for several files, see `samri.model._shards.join`."""


def read_content(path: Path) -> Content:
    """Read a .pth, .pt, .bin or .safetensors file on the CPU, or all files of a `*.index.json` or of its folder.

    A zip archive, as torch has written since 1.6, is compared with the checksums in it, which torch leaves alone. The
    single pickle that it wrote before has none.

    Raises:
        CheckpointError: The file is missing, no regular file, damaged, something else, or carries code.
        MissingDependencyError: A safetensors file, and that package isn't installed.
    """
    index = index_of(path)
    if index is not None:
        return Content(*join(index, functools.partial(_read_file, part=True)))
    return _read_file(path)


def _read_file(path: Path, *, part: bool = False) -> Content:
    with _opened(path) as file:
        try:
            head = file.read(_HEAD)
            kind = other_kind(path, head, part=part)
            if kind is not None:
                raise CheckpointError(f"{path}: {kind}")
            file.seek(0)
            sha256 = stream_sha256(file)
            size = file.tell()
            file.seek(0)
            is_zip = head.startswith(b"PK\x03\x04")
            if is_zip:
                _check_archive(path, file, size)
            file.seek(0)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error
        named_safetensors = path.suffix.lower() == ".safetensors" and not is_zip
        if named_safetensors or head[8:10] == b'{"':
            return Content(_read_safetensors(path), size, sha256)
        return Content(_read_pickle(path, file), size, sha256)


def _opened(path: Path) -> BinaryIO:
    try:
        missing = not path.exists()
    except (OSError, ValueError):
        missing = False  # The gate says what is wrong with such a path.
    if missing:
        raise CheckpointError(f"{path}: no such checkpoint file; {WHERE_TO_GET}")
    return open_regular(path, error=CheckpointError)


def _check_archive(path: Path, file: BinaryIO, size: int) -> None:
    """Compare every member of a zip archive with its CRC-32."""
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except ARCHIVE_DAMAGE as error:
        raise CheckpointError(f"{path}: {_DAMAGED}") from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise CheckpointError(
            f"{path}: a TorchScript program, not weights: save torch.jit.load(...).state_dict() with torch.save"
        )
    if not any(member.filename.endswith("data.pkl") for member in members):
        raise CheckpointError(
            f"{path}: a zip archive, but not one of PyTorch's: if it contains a checkpoint, unpack it and pass that"
        )
    if sum(member.file_size for member in members) > _MOST_UNPACKED * size:
        raise CheckpointError(f"{path}: unpacks to many times its size, which no checkpoint does")
    if not any(member.CRC for member in members):
        return  # torch.serialization.set_crc32_options(False) leaves the checksums out, all of them.
    for member in members:
        try:
            with archive.open(member) as content:
                while content.read(1 << 20):
                    pass
        except ARCHIVE_DAMAGE as error:
            raise CheckpointError(
                f"{path}: damaged, {plain_name(member.filename)} in it has a wrong checksum: copy or download it again"
            ) from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading .safetensors needs the safetensors package: pip install 'samri[export]'"
        ) from error
    try:
        tensors: dict[str, torch.Tensor] = load_file(path, device="cpu")
    except (SafetensorError, *_UNREADABLE) as error:
        reason = plain_name(str(error).partition("\n")[0] or type(error).__name__, r"[^ -~]")
        raise CheckpointError(f"{path}: not a readable safetensors file ({reason})") from error
    return tensors


class _NumpyValue:
    """Stands for a number or array of numpy's beside the weights, an epoch's loss or a random state: never looked at.

    It takes the place of numpy's own constructors, so none of those runs on what a file says.
    """

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_pickle(path: Path, file: BinaryIO) -> Any:
    allowed: list[Any] = [(_NumpyValue, name) for name in _NUMPY_GLOBALS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            # A newer pickle protocol is either read all the same or refused below, and sparse tensors always are.
            for message in ("Detected pickle", "Validating sparse tensor", r"Sparse \w+ tensor support"):
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise CheckpointError(f"{path}: needs more memory than there is, or is damaged") from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: {_why_unreadable(path, str(error))}") from error


def _why_unreadable(path: Path, message: str) -> str:
    """Tell a file that carries code from one in a newer pickle protocol and from a damaged one, in plain words."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    foreign = named.group(1) if named else None
    protocol, names = pickle_globals(path)
    if "Unsupported operand" in message:
        # torch gives up at the first operand of pickle protocol 4, before it comes to any name.
        foreign = next((name for name in names if not _PLAIN_GLOBALS.fullmatch(name)), None)
        if foreign is None and protocol >= 4:
            return (
                f"written in pickle protocol {protocol}, which PyTorch's safe reader doesn't know: "
                "save the weights again with torch.save(model.state_dict(), ...) and its default protocol"
            )
    if foreign is None:
        return _DAMAGED
    if any(name.startswith("torch.nn.modules.") for name in names):
        return (
            f"a whole pickled model ({plain_name(foreign)}), which is code, not weights: "
            "load it where its code is at home, and save torch.save(model.state_dict(), ...)"
        )
    return (
        f"refused, it carries code or objects ({plain_name(foreign)}) besides weights: "
        "save the weights alone, torch.save(model.state_dict(), ...)"
    )
