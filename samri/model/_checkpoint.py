"""From a checkpoint file to segment-anything's own `Sam`, every tensor accounted for."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import nn

from samri.errors import CheckpointError
from samri.model._architecture import Architecture, build_sam, infer_architecture
from samri.model._pickle_globals import plain_name
from samri.model._state_dict import StateDict, read_weights
from samri.model._tensor_names import SECTIONS
from samri.preprocessing import PIXEL_MEAN, PIXEL_STD


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A SAM model with the facts about the files that it came from."""

    sam: Sam
    """In evaluation mode, float32, on the CPU."""
    architecture: Architecture
    path: Path
    sha256: str
    """SHA-256 of the file."""
    base_path: Path | None = None
    """The full checkpoint that a decoder-only file was combined with."""
    base_sha256: str | None = None
    notes: tuple[str, ...] = ()
    """How the files' tensors were read, where it isn't plain: other names, parts that were left out."""


def load_checkpoint(path: str | Path, base: str | Path | None = None) -> Checkpoint:
    """Load a SAM, SAMRI or MedSAM checkpoint, or any SAM-shaped one, into segment-anything's own classes.

    Both files are read through `read_weights`, which refuses damaged ones.

    Args:
        path: A .pth, .pt, .bin or .safetensors file; a full model, or its mask decoder (and prompt encoder) alone.
        base: For a decoder-only file: the full checkpoint that gives the rest.

    Raises:
        CheckpointError: A file can't be read, or its tensors don't fit; the text names the keys and shapes.
    """
    path = Path(path)
    weights = read_weights(path)
    state, notes = weights.state, weights.notes
    has_encoder = any(name.startswith("image_encoder.") for name in state)
    if has_encoder and base is not None:
        raise CheckpointError(f"{path}: a full model already, so a base ({base}) has nothing to add: leave it out")
    if not has_encoder and base is None:
        raise CheckpointError(
            f"{path}: holds no image encoder; it is {_held(state)} alone, "
            "so name the full checkpoint that it was tuned from as its base (--base)"
        )
    base_sha256 = None
    if base is not None:
        whole = read_weights(base)
        state, base_sha256 = _completed(state, whole.state, Path(base)), whole.sha256
        notes += whole.notes
    architecture = infer_architecture(state, str(path))
    return Checkpoint(
        sam=_filled(architecture, state, path),
        architecture=architecture,
        path=path,
        sha256=weights.sha256,
        base_path=None if base is None else Path(base),
        base_sha256=base_sha256,
        notes=notes,
    )


def encoder_sha256(sam: Sam) -> str:
    """SHA-256 of the image encoder's weights.

    The same for two files that hold the same encoder, however wrapped and with whatever decoder.
    """
    return weights_sha256(sam.image_encoder)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's weights: sorted names, shapes, dtypes and little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
        digest.update(memoryview(array.reshape(-1)).cast("B"))
    return digest.hexdigest()


def _held(state: StateDict) -> str:
    parts = {"prompt_encoder.": "a prompt encoder", "mask_decoder.": "a mask decoder"}
    return " and ".join(part for section, part in parts.items() if any(name.startswith(section) for name in state))


def _completed(state: StateDict, base: StateDict, base_path: Path) -> StateDict:
    """Whole sections from `state` replace those of `base`, so that a section with a missing key stays a misfit."""
    if not any(name.startswith("image_encoder.") for name in base):
        raise CheckpointError(f"{base_path}: holds no image encoder either, so it can't be the base")
    sections = tuple(section for section in SECTIONS if any(name.startswith(section) for name in state))
    return {name: tensor for name, tensor in base.items() if not name.startswith(sections)} | state


def _filled(architecture: Architecture, state: StateDict, path: Path) -> Sam:
    # On the meta device nothing is allocated or initialised: the tensors that were read become the model's own.
    with torch.device("meta"):
        sam = build_sam(architecture)
    misfit = _misfit(sam.state_dict(), state)
    if misfit:
        raise CheckpointError(f"{path}: does not fit the {architecture.backbone} model its shapes describe: {misfit}")
    sam.load_state_dict(state, assign=True)
    # These two buffers are not part of a state dict.
    sam.pixel_mean = torch.tensor(PIXEL_MEAN).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(PIXEL_STD).view(-1, 1, 1)
    return sam


def _misfit(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str:
    """What doesn't fit, in words; empty when all does."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} (file {list(found[name].shape)}, model {list(tensor.shape)})"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = [
        _counted(missing, "missing key", "missing keys"),
        _counted(unexpected, "unexpected key", "unexpected keys"),
        _counted(reshaped, "other shape", "other shapes"),
    ]
    return "; ".join(part for part in parts if part)


def _counted(names: list[str], one: str, many: str, shown: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    listed = ", ".join(plain_name(name, r"[^ -~]") for name in names[:shown])
    return f"{len(names)} {one if len(names) == 1 else many}: {listed}{more}"
