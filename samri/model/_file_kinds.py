"""Kinds of files that hold no PyTorch weights, recognized by their first bytes, and the way out of each."""

from __future__ import annotations

import re
from pathlib import Path

_ONNX = re.compile(rb"\x08[\x03-\x20](\x12|\x1a|\x3a|\x42)", re.DOTALL)
"""An ONNX model begins with its IR version, then the producer's name or version, the graph or the operator sets."""

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+")
"""Names that transformers gives to the parts of a model."""


def other_kind(path: Path, head: bytes, *, part: bool = False) -> str | None:
    """A sentence on the kind of a file that can't be read as weights; None if it may be a checkpoint.

    Args:
        path: Its name counts where the bytes don't tell.
        head: The first kilobyte.
        part: It is read as a part of a model in several files.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "a Git LFS pointer, not the weights that it stands for: run `git lfs pull` in the folder that was cloned, "
            "or download the file itself"
        )
    if text.startswith(b"<") and re.search(rb"<(!doctype\s+)?html", text, re.IGNORECASE):
        return "a web page (HTML) saved in place of the weights: download it again, by the file's own link"
    if path.suffix.lower() == ".json" or text.startswith(b'{"'):
        return "a JSON file, not weights: give the .pth, .pt, .bin or .safetensors beside it"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file (Keras, TensorFlow), not PyTorch's weights: give the model's .pth or .safetensors"
    if path.suffix.lower() == ".onnx" or _ONNX.match(head):
        return "an ONNX graph, not weights: give the checkpoint that it was made from"
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "a packed archive: unpack it, and give the checkpoint in it"
    shard = _SHARD.search(path.name)
    if not part and shard is not None and int(shard.group(2)) > 1:
        return (
            f"part {int(shard.group(1))} of a model in {int(shard.group(2))} files: give the *.index.json beside it, "
            "or the folder"
        )
    return None
