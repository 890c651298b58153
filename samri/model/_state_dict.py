"""Reading a checkpoint file: a plain `{name: tensor}` dictionary with SAM's bare names, or an error in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from samri.errors import CheckpointError
from samri.model._checkpoint_file import read_content
from samri.model._families import family_of
from samri.model._pickle_globals import plain_name
from samri.model._tensor_names import PLACES, SHARED_PLACES, naming_of

StateDict = dict[str, torch.Tensor]

_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "sam", "weights", "module")
"""Entries under which training scripts keep the weights, beside `optimizer`, `epoch` and the like."""

_DEEPEST = 8
"""Wrappers within wrappers; a damaged pickle may even hold itself."""

_VALUES_PER_BYTE = 4
"""A file whose tensors share or repeat values holds at most so many more than its bytes."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights read from a checkpoint file."""

    state: StateDict
    """Float32, under names that start with one of `SECTIONS`."""
    sha256: str
    """SHA-256 of the file's bytes."""
    notes: tuple[str, ...] = ()
    """Messages for the user: how names were read, what was left out."""


def read_state_dict(path: str | Path) -> StateDict:
    """The weights of a checkpoint file alone; see `read_weights`."""
    return read_weights(path).state


def read_weights(path: str | Path) -> Weights:
    """Read the weights of a .pth, .pt, .bin or .safetensors file, on the CPU, as float32, under SAM's bare names.

    Never runs code that the file carries: torch's `weights_only` unpickler reads it. Wrapping dictionaries
    (`{"model": ..., "optimizer": ...}`) and the one prefix under which SAM lies are undone, Hugging Face's names
    translated; the names of a bare `MaskDecoder` are completed with `mask_decoder.`.

    Raises:
        CheckpointError: The file is missing, damaged, no checkpoint, another kind of model, carries code, or holds
            values that are no weights.
    """
    path = Path(path)
    content = read_content(path)
    tensors = _unwrapped(content.values, path)
    state, notes = _bare_names(tensors, path)
    if sum(tensor.numel() for tensor in state.values()) > _VALUES_PER_BYTE * content.bytes:
        raise CheckpointError(f"{path}: its tensors claim more values than a file of {content.bytes} bytes can hold")
    weights = {name: _as_weights(name, tensor, path) for name, tensor in state.items()}
    return Weights(weights, content.sha256, notes)


def _unwrapped(content: Any, path: Path) -> StateDict:
    """Descend through wrapping dictionaries to the one that holds the tensors."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if any("." in name for name in tensors):
            return tensors
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            names = _shortened([str(name) for name in content])
            raise CheckpointError(f"{path}: no weights found in it; it holds {names or 'nothing'}")
        content = inner
    raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")


def _bare_names(tensors: StateDict, path: Path) -> tuple[StateDict, tuple[str, ...]]:
    naming = naming_of(tensors)
    # Beside a SAM, a teacher of another family is none of our business.
    family = family_of(naming.bare or tensors)
    if family is not None:
        raise CheckpointError(f"{path}: {family}")
    if naming.prefixes:
        raise CheckpointError(
            f"{path}: holds several models, under {_shortened(repr(prefix) for prefix in naming.prefixes)}: "
            "save the weights of one"
        )
    if not naming.bare:
        raise CheckpointError(f"{path}: not a SAM checkpoint; its weights are named {_shortened(tensors)}")
    state = {bare: tensors[name] for name, bare in naming.bare.items()}
    if len(state) < len(naming.bare):
        raise CheckpointError(f"{path}: holds the same weights twice, with and without a `module.` prefix")
    notes = []
    if naming.hugging_face:
        notes.append(f"{path.name} has Hugging Face's names: read as segment-anything's")
        _unify_places(state, path)
    if naming.left_out:
        notes.append(f"{path.name} holds more than SAM, which was left out: {_shortened(naming.left_out)}")
    return state, tuple(notes)


def _unify_places(state: StateDict, path: Path) -> None:
    """Hugging Face keeps the matrix that encodes places under two names, or under one of the two."""
    shared = state.pop(SHARED_PLACES, None)
    if shared is not None and not torch.equal(state.setdefault(PLACES, shared), shared):
        raise CheckpointError(f"{path}: uses different positional encodings for images and prompts, unlike SAM")


def _as_weights(name: str, tensor: torch.Tensor, path: Path) -> torch.Tensor:
    name = plain_name(name)
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        kind = "no values" if tensor.is_meta else f"a {str(tensor.layout).removeprefix('torch.')} tensor"
        raise CheckpointError(f"{path}: {name} holds {kind}: save ordinary dense tensors, from a model on a device")
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')} values, not weights")
    weights = tensor.detach().to(torch.float32).contiguous()
    # After the conversion, which turns what float32 can't hold into infinities.
    if not bool(torch.isfinite(weights).all()):
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinite values, or some beyond float32: "
            "the training diverged, or the file is damaged"
        )
    return weights


def _shortened(names: Iterable[str], shown: int = 4) -> str:
    plain = [plain_name(name, r"[^ -~]") for name in names]
    more = f" and {len(plain) - shown} more" if len(plain) > shown else ""
    return ", ".join(plain[:shown]) + more
