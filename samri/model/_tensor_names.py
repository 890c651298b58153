"""From the names that a training script gave to SAM's tensors to segment-anything's own, by fixed rules.

Hugging Face's `SamModel` holds the same tensors in the same order of axes, so that renaming is all it takes. Its names
are told by words that segment-anything doesn't use, and each rule leaves segment-anything's names as they are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

SECTIONS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")

_PARALLEL = {"module", "_orig_mod"}
"""What DistributedDataParallel and torch.compile insert into names, at any depth."""

_SECTION = re.compile(
    r"(?:^|\.)((?:image_encoder|vision_encoder|prompt_encoder|mask_decoder|shared_image_embedding)\.)"
)

SHARED_PLACES = "shared_image_embedding.positional_embedding"
"""Hugging Face's second name for the one matrix that encodes places."""

PLACES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

_HUGGING_FACE = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder\.patch_embed\.)projection\.", r"\1proj."),
    (r"^(image_encoder\.)layers\.(\d+\.(?:layer_norm[12]|attn|mlp)\.)", r"\1blocks.\2"),
    (r"^(image_encoder\.neck\.)conv1\.", r"\g<1>0."),
    (r"^(image_encoder\.neck\.)layer_norm1\.", r"\g<1>1."),
    (r"^(image_encoder\.neck\.)conv2\.", r"\g<1>2."),
    (r"^(image_encoder\.neck\.)layer_norm2\.", r"\g<1>3."),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding$", PLACES),
    (r"^(prompt_encoder\.)point_embed\.", r"\1point_embeddings."),
    (r"^(prompt_encoder\.)mask_embed\.conv1\.", r"\1mask_downscaling.0."),
    (r"^(prompt_encoder\.)mask_embed\.layer_norm1\.", r"\1mask_downscaling.1."),
    (r"^(prompt_encoder\.)mask_embed\.conv2\.", r"\1mask_downscaling.3."),
    (r"^(prompt_encoder\.)mask_embed\.layer_norm2\.", r"\1mask_downscaling.4."),
    (r"^(prompt_encoder\.)mask_embed\.conv3\.", r"\1mask_downscaling.6."),
    (r"^(mask_decoder\.)upscale_conv1\.", r"\1output_upscaling.0."),
    (r"^(mask_decoder\.)upscale_layer_norm\.", r"\1output_upscaling.1."),
    (r"^(mask_decoder\.)upscale_conv2\.", r"\1output_upscaling.3."),
    (r"\.layer_norm(\d\.|_final_attn\.)", r".norm\1"),
)
"""In this order; the layers of its small networks follow in `_renumbered`."""

_SMALL_NETWORK = re.compile(
    r"(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+)\.)(proj_in|proj_out|layers\.(\d+))\.(\w+)"
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """How a file names its tensors.

    Attributes:
        bare: The names of SAM's tensors in the file, to segment-anything's; empty if there is no SAM in it.
        left_out: Names of tensors that belong to no SAM.
        prefixes: Under which SAMs lie, if there is more than one and none is told from the others.
        hugging_face: Whether they are Hugging Face's.
    """

    bare: dict[str, str]
    left_out: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    hugging_face: bool = False


def naming_of(names: Iterable[str]) -> Naming:
    """Find the one prefix under which all of SAM lies, and translate what is there.

    Two names may come out the same: `module.` and the like are left out of both.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _PARALLEL) for name in names}
    if {"iou_token.weight", "mask_tokens.weight"} <= set(plain.values()):
        plain = {name: f"mask_decoder.{bare}" for name, bare in plain.items()}
    sections: dict[str, set[str]] = {}
    for bare in plain.values():
        match = _SECTION.search(bare)
        if match is not None:
            sections.setdefault(bare[: match.start(1)], set()).add(match.group(1))
    if not sections:
        return Naming({}, tuple(plain))
    # A whole SAM before parts of one, such as a second encoder to distill from.
    whole = [
        prefix
        for prefix, section_names in sections.items()
        if "mask_decoder." in section_names and len(section_names) > 1
    ]
    prefixes = whole or list(sections)
    if len(prefixes) > 1:
        return Naming({}, prefixes=tuple(prefixes))
    (prefix,) = prefixes
    inside = {
        name: bare.removeprefix(prefix)
        for name, bare in plain.items()
        if bare.startswith(prefix) and _SECTION.match(bare.removeprefix(prefix))
    }
    translated = _from_hugging_face(inside)
    return Naming(
        translated,
        tuple(name for name in plain if name not in inside),
        hugging_face=translated != inside or any(bare == SHARED_PLACES for bare in inside.values()),
    )


def _from_hugging_face(names: dict[str, str]) -> dict[str, str]:
    translated = {}
    for name, bare in names.items():
        for theirs, ours in _HUGGING_FACE:
            bare = re.sub(theirs, ours, bare)
        translated[name] = bare
    return _renumbered(translated)


def _renumbered(names: dict[str, str]) -> dict[str, str]:
    """`proj_in`, `layers.0`, ..., `proj_out` of a small network -> `layers.0`, `layers.1`, ..., the last of them."""
    between: dict[str, set[int]] = {}
    for bare in names.values():
        match = _SMALL_NETWORK.fullmatch(bare)
        if match is not None:
            numbers = between.setdefault(match.group(1), set())
            numbers |= {-1} if match.group(3) is None else {int(match.group(3))}
    theirs = {network: len(numbers) - 1 for network, numbers in between.items() if -1 in numbers}

    def renumbered(bare: str) -> str:
        match = _SMALL_NETWORK.fullmatch(bare)
        if match is None or match.group(1) not in theirs:
            return bare
        places = {"proj_in": 0, "proj_out": theirs[match.group(1)] + 1}
        place = places[match.group(2)] if match.group(3) is None else int(match.group(3)) + 1
        return f"{match.group(1)}layers.{place}.{match.group(4)}"

    return {name: renumbered(bare) for name, bare in names.items()}
