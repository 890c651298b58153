"""Reading a checkpoint file: a plain `{name: tensor}` dictionary with SAM's bare names comes out, or one plain line."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from samri.errors import CheckpointError, MissingDependencyError
from samri.model._pickle_globals import pickle_globals

StateDict = dict[str, torch.Tensor]

SECTIONS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")

_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "sam", "weights")
"""Entries under which training scripts keep the weights, beside `optimizer`, `epoch` and the like."""

_PARALLEL = {"module", "_orig_mod"}
"""What DistributedDataParallel and torch.compile insert into names, at any depth."""

_PLAIN_GLOBALS = re.compile(
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_\w+|(storage\.)?\w*Storage|Size|\w+\d+)"
)
"""What a pickled state dict refers to: containers, tensors, storages and dtypes."""

# What torch's restricted unpickler and its zip reader were seen to raise on damaged files. A damaged pickle can ask for
# any item, attribute or operand that is not there, hence the last four.
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
)


def read_state_dict(path: str | Path) -> StateDict:
    """Read the weights of a .pth, .pt or .safetensors file, on the CPU, as float32, under SAM's bare names.

    Never runs code that the file carries: torch's `weights_only` unpickler reads it. Wrapping dictionaries
    (`{"model": ..., "optimizer": ...}`) and prefixes (`module.`) are undone; the names of a bare `MaskDecoder` are
    completed with `mask_decoder.`.

    Returns:
        Names that start with one of `SECTIONS`, to tensors.

    Raises:
        CheckpointError: The file is missing, cut off, no checkpoint, carries code, or holds values that are no weights.
    """
    path = Path(path)
    try:
        found = path.is_file()
    except OSError as error:  # A name that is too long, or a folder that may not be entered.
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    if not found:
        raise CheckpointError(f"{path}: no such checkpoint file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _bare_names(_unwrapped(content, path), path)
    return {name: _as_weights(name, tensor, path) for name, tensor in state.items()}


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading .safetensors needs the safetensors package: pip install 'samri[export]'"
        ) from error
    try:
        tensors: StateDict = load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({_first_line(error)})") from error
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # A newer pickle protocol is either read all the same or refused below, and sparse tensors always are.
            for message in ("Detected pickle", "Validating sparse tensor", r"Sparse \w+ tensor support"):
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: {_why_unreadable(path, str(error))}") from error


def _why_unreadable(path: Path, message: str) -> str:
    """Tell a file that carries code from one in a newer pickle protocol and from a damaged one, in plain words."""
    named = re.search(r"GLOBAL ([\w.]+)", message)
    foreign = named.group(1) if named else None
    if "Unsupported operand" in message:
        # torch gives up at the first operand of pickle protocol 4, before it comes to any name.
        protocol, names = pickle_globals(path)
        foreign = next((name for name in names if not _PLAIN_GLOBALS.fullmatch(name)), None)
        if foreign is None and protocol >= 4:
            return (
                f"written in pickle protocol {protocol}, which PyTorch's safe reader doesn't know: "
                "save the weights again with torch.save(model.state_dict(), ...) and its default protocol"
            )
    if foreign is None:
        return "not a PyTorch checkpoint, or cut off (copy or download it again)"
    return (
        f"refused, it carries code or objects ({foreign}) besides weights: "
        "save the weights alone, torch.save(model.state_dict(), ...)"
    )


def _unwrapped(content: Any, path: Path) -> StateDict:
    """Descend through wrapping dictionaries to the one that holds the tensors."""
    while isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if any("." in name for name in tensors):
            return tensors
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            names = _shortened([str(name) for name in content])
            raise CheckpointError(f"{path}: no weights found in it; it holds {names or 'nothing'}")
        content = inner
    raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")


def _bare_names(tensors: StateDict, path: Path) -> StateDict:
    bare: StateDict = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _PARALLEL]
        bare[".".join(parts)] = tensor
    if len(bare) < len(tensors):
        raise CheckpointError(f"{path}: holds the same weights twice, with and without a `module.` prefix")
    while bare and not any(name.startswith(SECTIONS) for name in bare):
        heads = {name.partition(".")[0] for name in bare}
        if len(heads) > 1 or any("." not in name for name in bare):
            break
        bare = {name.partition(".")[2]: tensor for name, tensor in bare.items()}
    if "iou_token.weight" in bare and "mask_tokens.weight" in bare:
        bare = {f"mask_decoder.{name}": tensor for name, tensor in bare.items()}
    if not any(name.startswith(SECTIONS) for name in bare):
        raise CheckpointError(f"{path}: not a SAM checkpoint; its weights are named {_shortened(list(bare))}")
    return bare


def _as_weights(name: str, tensor: torch.Tensor, path: Path) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "no values" if tensor.is_meta else f"a {str(tensor.layout).removeprefix('torch.')} tensor"
        raise CheckpointError(f"{path}: {name} holds {kind}: save ordinary dense tensors, from a model on a device")
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')} values, not weights")
    weights = tensor.detach().to(torch.float32).contiguous()
    # After the conversion, which turns what float32 can't hold into infinities.
    if not bool(torch.isfinite(weights).all()):
        raise CheckpointError(
            f"{path}: {name} holds NaN or infinite values, or some beyond float32: "
            "the training that wrote it has diverged"
        )
    return weights


def _shortened(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
